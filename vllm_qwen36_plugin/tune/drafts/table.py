"""What was found, for a terminal."""

from __future__ import annotations

import shlex
from collections.abc import Mapping

from rich.table import Table
from rich.text import Text

from gptq_hybrid.common.tables import report_table

from .choose import Choice, Recommendation
from .grid import Cell, Context, Plan, speculative
from .result import Measured


def cells_table(plan: Plan, cells: Mapping[Cell, Measured], found: Recommendation) -> Table:
    """A section a context and batch, a row a number of drafts; green: what is best there."""
    table = report_table(
        f"{plan.checkpoint.location}: {plan.repeats} repeats, answers of at most {plan.max_tokens} tokens, "
        + ("greedy" if plan.temperature == 0 else f"temperature {plan.temperature:g}"),
        "prompt: tokens (median); TPOT, TTFT: ms, as a client sees them; 95 %: of all answers; tokens/s: all "
        "requests together; length: tokens a step; accepted: by position; green: best for this batch and context",
        padding=0,
    )
    table.add_column("context", no_wrap=True)
    for name in ("prompt", "batch", "drafts", "TPOT", "95 %", "TTFT", "tokens/s", "length"):
        table.add_column(name, justify="right", no_wrap=True)
    table.add_column("accepted, %", overflow="fold")
    for (context, batch), part in found.parts.items():
        for number in plan.numbers:
            measured = cells[Cell(number, batch, context)]
            first, last = number == plan.numbers[0], number == plan.numbers[-1]
            table.add_row(
                *((context, f"{measured.prompt_tokens:,.0f}", f"{batch}") if first else ("", "", "")),
                *(Text(cell, style="green" if number == part.number else "") for cell in _figures(measured)),
                end_section=last,
            )
    return table


def _figures(measured: Measured) -> list[str]:
    drafts = measured.cell.drafts
    return [
        f"{drafts}",
        _ms(measured.tpot),
        _ms(measured.tpot95),
        _ms(measured.ttft),
        f"{measured.throughput:,.1f}",
        f"{measured.acceptance.length:.2f}" if drafts else "–",
        " ".join(f"{100 * share:.0f}" for share in measured.positions) if drafts else "–",
    ]


def _ms(value: float) -> str:
    return f"{value:,.2f}" if value < 100 else f"{value:,.0f}"


def meaning(plan: Plan, found: Recommendation) -> list[str]:
    """The number to use, why, and the command, a paragraph each."""
    overall = found.overall
    lines = [_reason(plan, overall, len(found.parts))]
    if other := _elsewhere(found):
        lines.append(other)
    worse = [(part, ratio) for part, ratio in found.ratios.items() if ratio > 1]
    if worse and overall.number != overall.against:
        (context, batch), ratio = max(worse, key=lambda each: each[1])
        lines.append(
            f"It costs most at batch {batch}, {context} context: {ratio:.2f} of the time per token with "
            f"{_drafts(overall.against)}."
        )
    if not overall.number:
        lines.append("Serve without --speculative-config:")
    else:
        lines.append(f"Use: {shlex.join(speculative(overall.number))}")
    lines.append(shlex.join(["vllm", "serve", *plan.recommended, *speculative(overall.number)]))
    return lines


def _reason(plan: Plan, overall: Choice, parts: int) -> str:
    over = (
        "in the one case measured" if parts == 1 else f"over the {parts} cases (geometric mean, each alike)"
    )
    if len(plan.numbers) == 1:
        return f"{_drafts(overall.number).capitalize()}: nothing else was measured."
    if overall.number == overall.against:
        if overall.fastest == overall.number:
            return f"{_drafts(overall.number).capitalize()}: no more drafts are faster {over}."
        return (
            f"{_drafts(overall.number).capitalize()}: {_drafts(overall.fastest)} took the least time per token "
            f"{over}, but by no more than repeats differ."
        )
    text = (
        f"{_drafts(overall.number).capitalize()}: the time per token is {_less(overall)} than with "
        f"{_drafts(overall.against)} {over}; noise {100 * overall.gain.noise:.1f} %."
    )
    if overall.fastest != overall.number:
        text += f" {_drafts(overall.fastest).capitalize()} are no faster beyond what repeats differ by."
    return text


def _less(one: Choice) -> str:
    return f"{100 * one.gain.value:.1f} % shorter"


def _elsewhere(found: Recommendation) -> str:
    """Where another number than the one for all is best."""
    others: dict[int, list[tuple[Context, int]]] = {}
    for part, each in found.parts.items():
        if each.number != found.overall.number:
            others.setdefault(each.number, []).append(part)
    if not others:
        return ""
    said = [
        f"{_drafts(number)} at " + ", ".join(f"batch {batch} ({context})" for context, batch in parts)
        for number, parts in sorted(others.items())
    ]
    return f"If you serve only one of them, best by itself: {'; '.join(said)}."


def _drafts(number: int) -> str:
    return "no drafts" if not number else f"{number} draft{'s' * (number > 1)}"
