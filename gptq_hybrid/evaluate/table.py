"""Evaluations as tables of at most 110 columns."""

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

_MOST_DECIMALS = 7
_NO_INTERVAL = "[–]"
_STYLE = {"better": "green", "worse": "red", "no difference shown": "dim"}
# For each measure: name, unit, and factor from the unit of the result to the unit shown.
_MEASURES = {
    "kld_mean": ("mean KLD", "nats per token", 1.0),
    "top1": ("top-1 agreement", "percentage points", 100.0),
    "log_perplexity": ("log perplexity", "nats per token", 1.0),
    "acceptance_length": ("acceptance length", "tokens per step", 1.0),
}


def evaluation_tables(evaluation: Evaluation) -> Group:
    """Return all tables: figures of each checkpoint by domain, its drafts, each pair, tasks."""
    parts: list[RenderableType] = []
    for checkpoint in evaluation.checkpoints:
        parts.append(quality_table(checkpoint, evaluation.reference))
        if checkpoint.overall.acceptance or checkpoint.overall.acceptance_ref:
            parts.append(drafts_table(checkpoint, evaluation.reference))
        parts += _notes((checkpoint.overall, *checkpoint.domains))
    for comparison in evaluation.comparisons:
        parts.append(comparison_table(comparison))
        parts += _notes((comparison.overall, *comparison.domains))
    if left_out := evaluation.settings.get("left_out"):
        reasons = ", ".join(f"{count:,} {reason.replace('_', ' ')}" for reason, count in left_out.items())
        parts.append(Text(f"! rows of the data left out: {reasons}", style="yellow"))
    if evaluation.tasks is not None:
        parts += task_tables(evaluation.tasks)
    return Group(*parts)


def quality_table(checkpoint: CheckpointSummary, reference: str) -> Table:
    """Return one row per domain: KLD, top-1 agreement, perplexity, with intervals below their figures."""
    table = report_table(
        f"{checkpoint.name} against {reference}",
        "KLD in nats per token; 95 % intervals over documents; all: domains weigh alike",
        padding=0,
    )
    table.add_column("domain", overflow="fold")
    # The 99th percentile is only in the JSON: with it, two-line cells would need more than 110 columns.
    for header in (
        "docs\ntokens",
        "KLD\nmean",
        "KLD\nmedian",
        "KLD\n99.9 %",
        "top-1\n%",
        "perplexity\nfrom → to",
        "perplexity\nratio",
    ):
        table.add_column(header, justify="right", overflow="fold")
    for row in (checkpoint.overall, *checkpoint.domains):
        table.add_row(
            _name(row),
            f"{row.documents:,}\n{row.tokens:,}",
            _cell(row.kld_mean),
            _cell(row.kld_median),
            _cell(row.kld_p999),
            _cell(row.top1, 100),
            f"{row.perplexity_ref.value:.4g}\n→ {row.perplexity.value:.4g}",
            _cell(row.perplexity_ratio),
            end_section=row is checkpoint.overall,
        )
    return table


def drafts_table(checkpoint: CheckpointSummary, reference: str) -> Table:
    """Return one row per domain: shares of drafts that agree with the own argmax, and acceptance length."""
    drafts = max(
        len(a.positions) for a in (checkpoint.overall.acceptance, checkpoint.overall.acceptance_ref) if a
    )
    shown = min(drafts, 3)
    table = report_table(
        f"MTP drafts of {checkpoint.name}, and of {reference}",
        "% of drafts that agree with the own argmax, where all before agreed; length: tokens per step",
        padding=0,
    )
    table.add_column("domain", overflow="fold")
    table.add_column("positions", justify="right", overflow="fold")
    for header in (*(f"draft {k + 1} %" for k in range(shown)), "length"):
        table.add_column(f"{header}\nreference", justify="right", overflow="fold")
        table.add_column(f"{header}\nquantized", justify="right", overflow="fold")
    for row in (checkpoint.overall, *checkpoint.domains):
        cells: list[str | Text] = []
        for k in range(shown):
            cells += [_draft(row.acceptance_ref, k), _draft(row.acceptance, k)]
        cells += [_cell(a.length) if a else "–" for a in (row.acceptance_ref, row.acceptance)]
        table.add_row(_name(row), f"{row.draft_positions:,}", *cells, end_section=row is checkpoint.overall)
    return table


def comparison_table(comparison: Comparison) -> Table:
    """Return one row per domain and figure: A minus B, its interval, p-values and verdict."""
    table = report_table(
        f"{comparison.a} (A) minus {comparison.b} (B), on the same documents",
        "p: sign-flip test over documents, in brackets corrected for the domains (Holm); verdict: on A, at 5 %",
        padding=0,
    )
    table.add_column("figure")
    table.add_column("domain", overflow="fold")
    for header in ("docs", "A − B", "95 % interval", "p", "verdict"):
        table.add_column(header, justify="left" if header == "verdict" else "right", overflow="fold")
    rows = (comparison.overall, *comparison.domains)
    for measure in MEASURES:
        differences = [(row, d) for row in rows for d in row.differences if d.measure == measure]
        name, unit, factor = _MEASURES[measure]
        labels = [name, f"({unit})"]
        for i, (row, difference) in enumerate(differences):
            value, ends = format_estimate(difference.difference, factor, signed=True)
            table.add_row(
                labels[i] if i < len(labels) else "",
                _name(row),
                f"{row.documents:,}",
                value,
                ends or _NO_INTERVAL,
                _p(difference, row is comparison.overall),
                Text(difference.verdict, style=_STYLE[difference.verdict]),
                end_section=i == len(differences) - 1,
            )
    return table


def _notes(rows: Sequence[Summary | DomainComparison]) -> list[RenderableType]:
    """Return each warning once, with the domains it is about; tables mark those with !."""
    notes: dict[str, list[str]] = {}
    for row in rows:
        for warning in row.warnings:
            notes.setdefault(warning, []).append(row.domain)
    return [Text(f"! {', '.join(domains)}: {note}", style="yellow") for note, domains in notes.items()]


def _name(row: Summary | DomainComparison) -> Text:
    return Text(
        printable(row.domain) + (" !" if row.warnings else ""), style="bold" if row.domain == OVERALL else ""
    )


def _draft(acceptance: Acceptance | None, k: int) -> str | Text:
    if acceptance is None or k >= len(acceptance.positions):
        return "–"
    return _cell(acceptance.positions[k], 100)


def _cell(estimate: Estimate, factor: float = 1.0) -> Text:
    """Put the figure on one line and its interval on the next."""
    value, ends = format_estimate(estimate, factor)
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
