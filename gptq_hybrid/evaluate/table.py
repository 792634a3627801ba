"""Evaluations as sentences, and as tables: of at most 80 columns, or with intervals of at most 110."""

from __future__ import annotations

import math
from collections.abc import Sequence

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from gptq_hybrid.common.tables import report_table
from gptq_hybrid.common.text import printable

from ._result import Evaluation
from ._task_table import format_p, task_tables
from .bootstrap import Estimate
from .compare import MEASURES, Comparison, Difference, DomainComparison
from .summary import OVERALL, Acceptance, CheckpointSummary, Summary

# Nats are shown in thousandths: what quantizing costs is between 1 and 100 of them.
MILLI = 1000.0
# What 4-bit GPTQ usually costs, in m-nats per token: the recipes in bench/quality cost 14.6 to 27.4.
USUAL = 20
# From here on a perplexity means that the reference does not know this text, or is not trained.
_ODD_PERPLEXITY = 1000.0
# From here on, KLD in nats and ratio of perplexities, something is broken rather than rounded.
_BROKEN_KLD, _BROKEN_RATIO = 1.0, 2.0
_MOST_DECIMALS = 7
_NO_INTERVAL = "[–]"
_STYLE = {"better": "green", "worse": "red", "no difference shown": "dim"}
# For each measure: name, unit, and factor from the unit of the result to the unit shown.
_MEASURES = {
    "kld_mean": ("mean KLD", "m-nats per token", MILLI),
    "top1": ("top-1 agreement", "percentage points", 100.0),
    "log_perplexity": ("log perplexity", "m-nats per token", MILLI),
    "acceptance_length": ("acceptance length", "tokens per step", 1.0),
}


def kld_unit(largest: float) -> tuple[float, str]:
    """Return the factor from nats to the unit in which ``largest`` has a digit before the point, and its name.

    That is m-nats, thousandths of a nat, for all that quantizing a trained model costs.
    """
    for factor, name in ((MILLI, "m-nats"), (1e6, "µ-nats")):
        if largest * factor >= 0.1:
            return factor, name
    return (1e9, "n-nats") if largest > 0 else (MILLI, "m-nats")


def evaluation_summary(evaluation: Evaluation) -> list[str]:
    """Return what the figures say: a sentence for each checkpoint, for each pair, and for what looks broken."""
    unit = _unit(evaluation)
    lines = [_standing(checkpoint, evaluation.reference, unit) for checkpoint in evaluation.checkpoints]
    lines += [_closer(comparison, evaluation.reference) for comparison in evaluation.comparisons]
    if evaluation.checkpoints:
        lines.append(f"({USUAL} m-nats per token is about what 4-bit GPTQ costs.)")
        perplexity = evaluation.checkpoints[0].overall.perplexity_ref.value
        if perplexity > _ODD_PERPLEXITY:
            lines.append(
                f"! {evaluation.reference} itself has a perplexity of {perplexity:.3g} on these documents: it is "
                "not trained, or does not know such text. The figures then say little about quantizing."
            )
    for checkpoint in evaluation.checkpoints:
        overall = checkpoint.overall
        if overall.kld_mean.value > _BROKEN_KLD or overall.perplexity_ratio.value > _BROKEN_RATIO:
            lines.append(
                f"! {checkpoint.name} is broken rather than rounded: its perplexity is "
                f"{overall.perplexity_ratio.value:.3g} times the original's. Run: qwen36 check, and qwen36 losses"
            )
    return lines


def _unit(evaluation: Evaluation) -> tuple[float, str]:
    return kld_unit(max((c.overall.kld_mean.value for c in evaluation.checkpoints), default=0.0))


def _standing(checkpoint: CheckpointSummary, reference: str, unit: tuple[float, str]) -> str:
    overall = checkpoint.overall
    kld, ends = format_estimate(overall.kld_mean, unit[0])
    top1, _ = format_estimate(overall.top1, 100)
    return (
        f"{checkpoint.name} is {kld} {unit[1]} per token from {reference}{f' {ends}' if ends else ''} "
        f"and agrees with it on the likeliest token in {top1} % of places."
    )


def _closer(comparison: Comparison, reference: str) -> str:
    a, b, quotient = comparison.a, comparison.b, comparison.kld_ratio
    difference = next(d for d in comparison.overall.differences if d.measure == "kld_mean")
    if quotient is None or difference.verdict == "no difference shown":
        return (
            f"No difference between {a} and {b} is shown by these documents (p = {format_p(difference.p)})."
        )
    low, value, high = quotient.low, quotient.value, quotient.high
    if value > 1:
        a, b, value = b, a, 1 / value
        low, high = (None, None) if low is None or high is None else (1 / high, 1 / low)
    ends = "" if low is None or high is None else f" [{100 * (1 - high):.0f}, {100 * (1 - low):.0f}]"
    return f"{a} is {100 * (1 - value):.0f} % closer to {reference} than {b}{ends}."


def evaluation_tables(evaluation: Evaluation, *, wide: bool = False) -> Group:
    """Return all tables: figures of each checkpoint by domain, its drafts, each pair, tasks.

    Args:
        evaluation: the result.
        wide: show intervals, medians and percentiles too.
    """
    parts: list[RenderableType] = []
    for checkpoint in evaluation.checkpoints:
        parts.append(quality_table(checkpoint, evaluation.reference, wide=wide, unit=_unit(evaluation)))
        if checkpoint.overall.acceptance or checkpoint.overall.acceptance_ref:
            parts.append(drafts_table(checkpoint, evaluation.reference, wide=wide))
        parts += _notes((checkpoint.overall, *checkpoint.domains), wide=wide)
    for comparison in evaluation.comparisons:
        parts.append(comparison_table(comparison, wide=wide))
        parts += _notes((comparison.overall, *comparison.domains), wide=wide)
    if left_out := evaluation.settings.get("left_out"):
        reasons = ", ".join(f"{count:,} {reason.replace('_', ' ')}" for reason, count in left_out.items())
        parts.append(Text(f"! rows of the data left out: {reasons}", style="yellow"))
    if evaluation.tasks is not None:
        parts += task_tables(evaluation.tasks)
    return Group(*_spaced(parts))


def _spaced(parts: list[RenderableType]) -> list[RenderableType]:
    """Put an empty line before each table."""
    return [piece for part in parts for piece in (("", part) if isinstance(part, Table) else (part,))]


def quality_table(
    checkpoint: CheckpointSummary,
    reference: str,
    *,
    wide: bool = False,
    unit: tuple[float, str] = (MILLI, "m-nats"),
) -> Table:
    """Return one row per domain: KLD, top-1 agreement, perplexity; if ``wide``, with intervals below them.

    ``unit`` is that of KLD, as :func:`kld_unit` gives it.
    """
    factor, name = unit
    table = report_table(
        f"{checkpoint.name} against {reference}",
        f"KLD in {name} per token, {1 / factor:g} of a nat; all: domains weigh alike"
        + ("; 95 % intervals over documents" if wide else "; intervals: --wide"),
        padding=0 if wide else (0, 1),
    )
    table.add_column("domain", overflow="fold")
    headers = [
        "docs\ntokens" if wide else "docs,\ntokens",
        "KLD\nm-nats",
        "top-1\n%",
        "perplexity\nfrom → to",
        "perplexity\nratio",
    ]
    if wide:
        headers[2:2] = ["KLD\nmedian", "KLD\n99 %", "KLD\n99.9 %"]
    for header in headers:
        table.add_column(header, justify="right")
    for row in (checkpoint.overall, *checkpoint.domains):
        kld = [_cell(row.kld_mean, factor, wide=wide)]
        if wide:
            kld += [_cell(e, factor, wide=True) for e in (row.kld_median, row.kld_p99, row.kld_p999)]
        gap = "\n" if wide else ", "
        table.add_row(
            _name(row),
            f"{row.documents:,}{gap}{row.tokens:,}",
            *kld,
            _cell(row.top1, 100, wide=wide),
            f"{row.perplexity_ref.value:.4g}{gap[-1]}→ {row.perplexity.value:.4g}",
            _cell(row.perplexity_ratio, wide=wide),
            end_section=row is checkpoint.overall,
        )
    return table


def drafts_table(checkpoint: CheckpointSummary, reference: str, *, wide: bool = False) -> Table:
    """Return one row per domain: shares of drafts that agree with the own argmax, and acceptance length."""
    drafts = max(
        len(a.positions) for a in (checkpoint.overall.acceptance, checkpoint.overall.acceptance_ref) if a
    )
    shown = min(drafts, 3)
    table = report_table(
        f"MTP drafts of {reference}, and of {checkpoint.name}",
        "% of drafts that agree with the own argmax, where all before agreed; length: tokens per step",
        padding=0 if wide else (0, 1),
    )
    table.add_column("domain", overflow="fold")
    table.add_column("positions", justify="right")
    for header in (*(f"draft {k + 1} %" for k in range(shown)), "length"):
        if wide:
            table.add_column(f"{header}\nreference", justify="right")
            table.add_column(f"{header}\nquantized", justify="right")
        else:
            table.add_column(f"{header}\nfrom → to", justify="right")
    for row in (checkpoint.overall, *checkpoint.domains):
        pairs: list[tuple[str | Text, str | Text]] = []
        for k in range(shown):
            pairs.append((_draft(row.acceptance_ref, k, wide=wide), _draft(row.acceptance, k, wide=wide)))
        lengths = [_cell(a.length, wide=wide) if a else "–" for a in (row.acceptance_ref, row.acceptance)]
        pairs.append((lengths[0], lengths[1]))
        cells = (
            [cell for pair in pairs for cell in pair] if wide else [f"{one} → {two}" for one, two in pairs]
        )
        table.add_row(_name(row), f"{row.draft_positions:,}", *cells, end_section=row is checkpoint.overall)
    return table


def comparison_table(comparison: Comparison, *, wide: bool = False) -> Table:
    """Return one row per domain and figure: A minus B, p-values and verdict; if ``wide``, with intervals."""
    table = report_table(
        f"{comparison.a} (A) minus {comparison.b} (B), on the same documents",
        "p: sign-flip test over documents, in brackets corrected for the domains (Holm); verdict: on A, at 5 %",
        padding=0 if wide else (0, 1),
    )
    table.add_column("figure", no_wrap=True)
    table.add_column("domain", overflow="fold")
    headers = ["docs", "A − B", "95 % interval", "p"] if wide else ["A − B", "p"]
    for header in headers:
        table.add_column(header, justify="right")
    table.add_column("verdict", overflow="fold")
    rows = (comparison.overall, *comparison.domains)
    for measure in MEASURES:
        differences = [(row, d) for row in rows for d in row.differences if d.measure == measure]
        name, unit, factor = _MEASURES[measure]
        labels = [name, f"({unit})"]
        for i, (row, difference) in enumerate(differences):
            value, ends = format_estimate(difference.difference, factor, signed=True)
            p = _p(difference, row is comparison.overall)
            figures = [f"{row.documents:,}", value, ends or _NO_INTERVAL, p] if wide else [value, p]
            table.add_row(
                labels[i] if i < len(labels) else "",
                _name(row),
                *figures,
                Text(difference.verdict, style=_STYLE[difference.verdict]),
                end_section=i == len(differences) - 1,
            )
    return table


def _notes(rows: Sequence[Summary | DomainComparison], *, wide: bool) -> list[RenderableType]:
    """Return each warning once, with the domains it is about; tables mark those with !.

    Percentiles are shown only if ``wide``, and so are warnings about them.
    """
    notes: dict[str, list[str]] = {}
    for row in rows:
        for warning in row.warnings:
            if "percentile" in warning and not wide:
                continue
            notes.setdefault(warning, []).append(row.domain)
    return [Text(f"! {', '.join(domains)}: {note}", style="yellow") for note, domains in notes.items()]


def _name(row: Summary | DomainComparison) -> Text:
    return Text(
        printable(row.domain) + (" !" if row.warnings else ""), style="bold" if row.domain == OVERALL else ""
    )


def _draft(acceptance: Acceptance | None, k: int, *, wide: bool) -> str | Text:
    if acceptance is None or k >= len(acceptance.positions):
        return "–"
    return _cell(acceptance.positions[k], 100, wide=wide)


def _cell(estimate: Estimate, factor: float = 1.0, *, wide: bool) -> Text:
    """The figure; if ``wide``, with its interval on the next line."""
    value, ends = format_estimate(estimate, factor)
    if not wide:
        return Text(value)
    return Text.assemble(value, "\n", (ends or _NO_INTERVAL, "dim"))


def format_estimate(
    estimate: Estimate, factor: float = 1.0, *, signed: bool = False
) -> tuple[str, str | None]:
    """Return a figure and its interval as text; None instead of an interval that does not exist.

    Both have two digits of half the interval's width: more it does not support.

    Args:
        estimate: what to show.
        factor: from the unit of the estimate to the unit shown.
        signed: give positive numbers a plus sign.
    """
    decimals = choose_decimals(estimate, factor)
    sign = "+z" if signed else "z"  # z: no negative zero
    value = f"{estimate.value * factor:{sign}.{decimals}f}"
    if estimate.low is None or estimate.high is None:
        return value, None
    return value, f"[{estimate.low * factor:{sign}.{decimals}f}, {estimate.high * factor:{sign}.{decimals}f}]"


def choose_decimals(estimate: Estimate, factor: float = 1.0) -> int:
    """Return decimals for two digits of half the interval, or three of the figure if it has no width."""
    half_width = (
        0.0 if estimate.low is None or estimate.high is None else (estimate.high - estimate.low) / 2 * factor
    )
    if half_width > 0:
        decimals = 1 - math.floor(math.log10(half_width))
    elif estimate.value:
        decimals = 2 - math.floor(math.log10(abs(estimate.value * factor)))
    else:
        decimals = 0
    return min(max(decimals, 0), _MOST_DECIMALS)


def _p(difference: Difference, overall: bool) -> str:
    p = format_p(difference.p)
    return p if overall else f"{p} ({format_p(difference.p_holm)})"
