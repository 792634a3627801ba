"""Losses as tables of at most 110 columns: by kind of module, and the modules worth a look."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from statistics import median

from rich.console import RenderableType
from rich.markup import escape
from rich.table import Table
from rich.text import Text

from gptq_hybrid.common.tables import report_table

from ._flags import FLAGS, flags_of, outliers
from ._modules import Measure, ModuleLoss, measure_of, value_of

WORST = 8
_GRAVE = ("fallback", "nan", "nonfinite")


def summary(modules: Sequence[ModuleLoss], *, worst: int = WORST) -> RenderableType:
    """One line if all modules are fine, else the ``worst`` of those that are not and counts by what is wrong."""
    measure, flags, apart = measure_of(modules), flags_of(modules), outliers(modules)
    flagged = [module for module in modules if flags[module.name]]
    if not flagged:
        return _fine(modules, measure)
    rank = list(FLAGS)
    flagged.sort(
        key=lambda m: (rank.index(flags[m.name][0]), -(apart.get(m.name) or value_of(m, measure) or 0.0))
    )
    counts = Counter(flag for module in flagged for flag in flags[module.name])
    table = report_table(
        f"{len(flagged)} of {len(modules)} modules are worth a look",
        "\n".join(f"{FLAGS[flag]}: {counts[flag]}" for flag in FLAGS if counts[flag])
        + (f"\nnot shown: {len(flagged) - worst}" if len(flagged) > worst else ""),
    )
    table.add_column("module", overflow="fold")
    table.add_column(_name(measure), justify="right", no_wrap=True)
    table.add_column("what", overflow="fold")
    for module in flagged[:worst]:
        found = flags[module.name]
        style = "red" if set(found) & set(_GRAVE) else "yellow"
        what = "; ".join(_say(module, flag, apart) for flag in found)
        table.add_row(
            escape(module.name), _shown(value_of(module, measure), measure), Text(what, style=style)
        )
    return table


def kinds_table(modules: Sequence[ModuleLoss]) -> Table:
    """A row a kind of module: how many, median and worst loss, and the layer that has it."""
    measure = measure_of(modules)
    caption = (
        "squared error of the output over its square, on the calibration data"
        if measure == "relative_error"
        else "gptqmodel's losses: not comparable between kinds, nor with other runs"
    )
    table = report_table(f"{_name(measure).capitalize()} of {len(modules)} quantized modules", caption)
    table.add_column("kind", overflow="fold")
    for column in ("modules", "median", "worst", "in layer"):
        table.add_column(column, justify="right")
    for kind in dict.fromkeys(module.kind for module in modules):
        group = [module for module in modules if module.kind == kind]
        known = [(value, m) for m in group if (value := value_of(m, measure)) is not None]
        if not known:
            table.add_row(escape(kind), str(len(group)), "", "", "")
            continue
        most, where = max(known, key=lambda pair: pair[0])
        table.add_row(
            escape(kind),
            str(len(group)),
            _shown(median(value for value, _ in known), measure),
            _shown(most, measure),
            "" if where.layer is None else str(where.layer),
        )
    return table


def _fine(modules: Sequence[ModuleLoss], measure: Measure) -> Text:
    known = [(value, m) for m in modules if (value := value_of(m, measure)) is not None]
    if not known:
        return Text(f"All {len(modules)} modules are fine, as far as the log tells.")
    most, where = max(known, key=lambda pair: pair[0])
    return Text(
        f"All {len(modules)} modules are fine: {_name(measure)} {_shown(median(v for v, _ in known), measure)} "
        f"in the median, {_shown(most, measure)} at most ({where.name})."
    )


def _say(module: ModuleLoss, flag: str, apart: dict[str, float]) -> str:
    match flag:
        case "fallback":
            return f"rounded: {module.reason or 'reason not logged'}"
        case "nan":
            return module.reason or "NaN loss"
        case "nonfinite":
            return f"{module.nonfinite_columns} inputs not finite"
        case "floor":
            return f"diagonal of the Hessian raised by {module.floor:.2g} of its mean"
        case "damped":
            return f"damping {module.damp_asked:g} → {module.damp:.4g}"
        case "outlier":
            return f"{apart[module.name]:.1f} × the median of its kind"
        case "starved":
            return f"{module.tokens} tokens for {module.columns} inputs"
        case _:
            share = f" of {module.columns}" if module.columns else ""
            return f"{module.dead_columns}{share} inputs always zero"


def _name(measure: Measure) -> str:
    return "relative error" if measure == "relative_error" else "loss"


def _shown(value: float | None, measure: Measure) -> str:
    if value is None:
        return "–"
    # Three digits whichever the size: a percentage with fixed decimals hides 1e-5.
    return f"{100 * value:.3g} %" if measure == "relative_error" else f"{value:.3g}"
