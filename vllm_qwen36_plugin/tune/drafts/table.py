"""The result of ``qwen36 tune drafts`` for a terminal: a table, and what it means in words."""

from __future__ import annotations

import shlex
from collections.abc import Mapping

from rich.table import Table
from rich.text import Text

from gptq_hybrid.common.tables import report_table
from gptq_hybrid.common.units import range_text

from .choose import Choice, Recommendation
from .grid import Cell, Context, Grid, count_of_drafts
from .result import CellResult


def cells_table(grid: Grid, cells: Mapping[Cell, CellResult], recommendation: Recommendation) -> Table:
    """Make the table: a section per context and batch, a line per count of drafts, the best in green."""
    table = report_table(
        f"{grid.checkpoint.location}: {grid.repeats} repeats, answers of at most {grid.max_tokens} tokens, "
        + ("greedy" if grid.temperature == 0 else f"temperature {grid.temperature:g}"),
        "prompt: tokens (median); TPOT, TTFT: ms, as a client sees them; 95 %: of all answers; tokens/s: all "
        "requests together; length: tokens a step; accepted: by position; green: best for this batch and context",
        padding=0,
    )
    table.add_column("context", no_wrap=True)
    for name in ("prompt", "batch", "drafts", "TPOT", "95 %", "TTFT", "tokens/s", "length"):
        table.add_column(name, justify="right", no_wrap=True)
    table.add_column("accepted, %", overflow="fold")
    for (context, batch), part in recommendation.parts.items():
        for count in grid.counts:
            result = cells[Cell(count, batch, context)]
            first, last = count == grid.counts[0], count == grid.counts[-1]
            table.add_row(
                *((context, f"{result.prompt_tokens:,.0f}", f"{batch}") if first else ("", "", "")),
                *(Text(cell, style="green" if count == part.count else "") for cell in _figures(result)),
                end_section=last,
            )
    return table


def _figures(result: CellResult) -> list[str]:
    drafts = result.cell.drafts
    return [
        f"{drafts}",
        _ms(result.tpot),
        _ms(result.tpot95),
        _ms(result.ttft),
        f"{result.throughput:,.1f}",
        f"{result.acceptance.length:.2f}" if drafts else "–",
        " ".join(f"{100 * share:.0f}" for share in result.positions) if drafts else "–",
    ]


def _ms(value: float) -> str:
    return f"{value:,.2f}" if value < 100 else f"{value:,.0f}"


def meaning(grid: Grid, recommendation: Recommendation) -> list[str]:
    """Say which count to use, why, and with which command, one paragraph each."""
    overall = recommendation.overall
    lines = [_reason(grid, overall, len(recommendation.parts))]
    if other := _best_elsewhere(recommendation):
        lines.append(other)
    worse = [(part, ratio) for part, ratio in recommendation.ratios.items() if ratio > 1]
    if worse and overall.count != overall.against:
        (context, batch), ratio = max(worse, key=lambda each: each[1])
        lines.append(
            f"It costs most at batch {batch}, {context} context: {ratio:.2f} of the time per token with "
            f"{count_of_drafts(overall.against)}."
        )
    if schedule := recommendation.schedule:
        ranges = ", ".join(
            f"{count_of_drafts(count)} for {range_text(first, last)}" for first, last, count in schedule
        )
        lines.append(f"By batch size, which this vLLM can follow: {ranges} at once, and as many beyond.")
    flags = recommendation.flags
    lines.append(f"Use: {shlex.join(flags)}" if flags else "Serve without --speculative-config.")
    return lines


def serve_line(grid: Grid, recommendation: Recommendation) -> str:
    """Return the shell line that serves with the count of drafts to use."""
    return shlex.join(["vllm", "serve", *grid.recommended, *recommendation.flags])


def _reason(grid: Grid, overall: Choice, parts: int) -> str:
    over = (
        "in the one case measured" if parts == 1 else f"over the {parts} cases (geometric mean, each alike)"
    )
    chosen = count_of_drafts(overall.count).capitalize()
    if len(grid.counts) == 1:
        return f"{chosen}: nothing else was measured."
    if overall.count == overall.against:
        if overall.fastest == overall.count:
            return f"{chosen}: no more drafts are faster {over}."
        return (
            f"{chosen}: {count_of_drafts(overall.fastest)} took the least time per token {over}, but by no more "
            "than repeats differ."
        )
    text = (
        f"{chosen}: the time per token is {100 * overall.gain.value:.1f} % shorter than with "
        f"{count_of_drafts(overall.against)} {over}; noise {100 * overall.gain.noise:.1f} %."
    )
    if overall.fastest != overall.count:
        text += (
            f" {count_of_drafts(overall.fastest).capitalize()} are no faster beyond what repeats differ by."
        )
    return text


def _best_elsewhere(recommendation: Recommendation) -> str:
    """Name the parts of the workload for which another count is best."""
    others: dict[int, list[tuple[Context, int]]] = {}
    for part, each in recommendation.parts.items():
        if each.count != recommendation.overall.count:
            others.setdefault(each.count, []).append(part)
    if not others:
        return ""
    texts = [
        f"{count_of_drafts(count)} at " + ", ".join(f"batch {batch} ({context})" for context, batch in parts)
        for count, parts in sorted(others.items())
    ]
    return f"If you serve only one of them, best by itself: {'; '.join(texts)}."
