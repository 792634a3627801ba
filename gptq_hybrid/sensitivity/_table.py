"""A scan as a sentence, and as tables: of at most 80 columns, or with intervals of at most 110."""

from __future__ import annotations

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from gptq_hybrid.common.tables import report_table
from gptq_hybrid.evaluate import Estimate
from gptq_hybrid.evaluate.table import choose_decimals, format_estimate, kld_unit

from ._result import Measured, Module, Sensitivity

WORST = 20
# Digits after the point: smaller figures are a matter of rounding, and would widen every column.
_DECIMALS = 3


def sensitivity_summary(result: Sensitivity) -> list[str]:
    """Return what the scan says: which module costs most, and how few make half of the cost."""
    rows = rank_modules(result)
    if not rows:
        return ["No module was measured."]
    costs = [m.kld.value if m.kld else 0.0 for _, m in rows]
    total = sum(costs)
    module, form = rows[0][0], result.forms[0]
    factor, unit = _unit(result)
    where = module.kind if module.layer is None else f"{module.kind} of layer {module.layer}"
    lines = [f"Costliest at {form}: {where}, with {factor * costs[0]:.3g} {unit} per token by itself."]
    if total > 0:
        half, running = 0, 0.0
        while running < total / 2:
            running += costs[half]
            half += 1
        makes = "module makes" if half == 1 else "modules make"
        lines[0] += f" {half} {makes} half of the sum of {factor * total:.3g} over {len(rows)}."
    heads = sorted({module.kind for module, _ in rows if module.layer is None})
    if heads:
        lines.append(
            f"({', '.join(heads)}: most recipes leave it in 16 bits, and then it costs nothing. compact packs it.)"
        )
    return lines


def sensitivity_tables(result: Sensitivity, *, worst: int = WORST, wide: bool = False) -> Group:
    """Return the modules that cost most, sums by kind of module, and the MTP head.

    Args:
        result: the scan.
        worst: most modules in the first table.
        wide: show intervals too.
    """
    parts: list[RenderableType] = [
        "",
        _module_table(result, worst, wide=wide),
        "",
        _kind_table(result, wide=wide),
    ]
    if any(m.acceptance_change for module in result.modules for m in module.measured):
        parts += ["", _mtp_table(result, wide=wide)]
    return Group(*parts)


def rank_modules(result: Sensitivity, form: str | None = None) -> list[tuple[Module, Measured]]:
    """Return the modules with a KL divergence, the costliest first.

    ``form`` is the label of the precision to rank by; by default the first of the result.
    """
    label = result.forms[0] if form is None else form
    pairs = [(module, module.measured_in(label)) for module in result.modules]
    measured = [(module, m) for module, m in pairs if m is not None and m.kld]
    return sorted(measured, key=lambda pair: (-pair[1].kld.value if pair[1].kld else 0.0, pair[0].name))


def _unit(result: Sensitivity) -> tuple[float, str]:
    rows = rank_modules(result)
    return kld_unit(rows[0][1].kld.value if rows and rows[0][1].kld else 0.0)


def _module_table(result: Sensitivity, worst: int, *, wide: bool) -> Table:
    factor, unit = _unit(result)
    first, *others = result.forms
    rows = rank_modules(result)
    of = f" of {result.quantized}" if result.quantized else ""
    table = report_table(
        f"Costliest modules{of}, each by itself in {result.reference}: {min(worst, len(rows))} of {len(rows)}",
        f"KLD in {unit} per token, {1 / factor:g} of a nat; {_intervals(wide)}; share: of the sum over all; "
        "MB: saved against BF16",
    )
    table.add_column("layer", justify="right")
    table.add_column("module", overflow="fold")
    for header in (f"KLD\n{first}", "share\n%", f"top-1\n{first}, %", f"MB\n{first}"):
        table.add_column(header, justify="right")
    for form in others:
        table.add_column(f"KLD\n{form}", justify="right")
    total = sum(m.kld.value for _, m in rows if m.kld) or 1.0
    for module, m in rows[:worst]:
        assert m.kld is not None
        assert m.top1 is not None
        table.add_row(
            "" if module.layer is None else str(module.layer),
            module.kind,
            _cell(m.kld, factor, wide=wide),
            f"{100 * m.kld.value / total:.1f}",
            f"{100 * m.top1.value:.2f}",
            _mb(m.bytes_saved),
            *(_value(o.kld, factor) if (o := module.measured_in(form)) and o.kld else "–" for form in others),
        )
    return table


def _kind_table(result: Sensitivity, *, wide: bool) -> Table:
    factor, unit = _unit(result)
    table = report_table(
        "Sums by kind of module",
        f"KLD in {unit} per token, of each module by itself, added up; together: all of them at once",
    )
    first = result.forms[0]
    table.add_column("kind", no_wrap=True)
    table.add_column("modules", justify="right")
    table.add_column(f"MB saved\n{first}", justify="right")
    for form in result.forms:
        table.add_column(f"KLD\n{form}", justify="right")
    by_kind = {(k.kind, k.form): k for k in result.kinds}
    kinds = list(dict.fromkeys(k.kind for k in result.kinds))
    for kind in kinds:
        sums = [by_kind.get((kind, form)) for form in result.forms]
        table.add_row(
            kind,
            str(max(k.count for k in sums if k)),
            _mb(sums[0].bytes_saved) if sums[0] else "–",
            *(_cell(k.kld_sum, factor, wide=wide) if k else "–" for k in sums),
            end_section=kind == kinds[-1],
        )
    together = {t.form: t for t in result.together}
    rows = [together.get(form) for form in result.forms]
    table.add_row("sum", "", "", *(_cell(t.kld_sum, factor, wide=wide) if t else "–" for t in rows))
    table.add_row("together", "", "", *(_cell(t.kld, factor, wide=wide) if t else "–" for t in rows))
    table.add_row("sum / together", "", "", *(_cell(t.ratio, 1.0, wide=wide) if t else "–" for t in rows))
    return table


def _mtp_table(result: Sensitivity, *, wide: bool) -> Table:
    length = "–" if result.acceptance_length is None else f"{result.acceptance_length.value:.3f}"
    table = report_table(
        f"MTP head: change of its acceptance length, {length} tokens per step in {result.reference}",
        "drafts against the reference's own argmax; mtp: the whole head",
    )
    table.add_column("module", no_wrap=True)
    for form in result.forms:
        table.add_column(form, justify="right")
    for module in result.modules:
        measured = [module.measured_in(form) for form in result.forms]
        if any(m and m.acceptance_change for m in measured):
            cells = [
                _cell(m.acceptance_change, 1.0, signed=True, wide=wide) if m and m.acceptance_change else "–"
                for m in measured
            ]
            table.add_row(module.kind, *cells)
    return table


def _mb(size: int) -> str:
    return f"{size / 1e6:,.0f}" if size >= 1e8 else f"{size / 1e6:.3g}"


def _value(estimate: Estimate, factor: float) -> str:
    """The figure, with no more digits than a column has room for."""
    if choose_decimals(estimate, factor) <= _DECIMALS:
        return format_estimate(estimate, factor)[0]
    value = estimate.value * factor
    return f"<{10**-_DECIMALS}" if 0 < value < 10**-_DECIMALS else f"{value:z.{_DECIMALS}f}"


def _intervals(wide: bool) -> str:
    return "95 % intervals over documents" if wide else "intervals: --wide"


def _cell(estimate: Estimate, factor: float, *, signed: bool = False, wide: bool) -> Text:
    """The figure; if ``wide``, with all of its digits and its interval beside it."""
    if not wide and not signed:
        return Text(_value(estimate, factor))
    value, ends = format_estimate(estimate, factor, signed=signed)
    return Text(value) if ends is None or not wide else Text.assemble(value, " ", (ends, "dim"))
