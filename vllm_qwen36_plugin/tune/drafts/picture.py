"""Time per token against the number of drafts, and what was accepted by position."""

from __future__ import annotations

import textwrap
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from gptq_hybrid.common import figures
from gptq_hybrid.common.extras import need

from .choose import Recommendation
from .grid import Cell, Context, Plan
from .result import Measured

_WIDTH = 100


def plot(
    plan: Plan,
    cells: Mapping[Cell, Measured],
    found: Recommendation,
    environment: Mapping[str, str],
    path: Path,
) -> None:
    """Draw into the PNG file ``path``, which appears once it is whole.

    A column a context. Above: median TPOT against drafts, a line a batch, bars from the least to the greatest
    repeat, a ring round the best. Below: share of drafts accepted by position, of the largest number of drafts.

    Raises:
        HybridError: matplotlib is not installed.
    """
    need("matplotlib")
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    drafted = [number for number in plan.numbers if number]
    lines = 1 + bool(drafted)
    figure = Figure(figsize=(max(4.4 * len(plan.contexts), 6.4), 3.4 * lines + 0.7), layout="constrained")
    FigureCanvasAgg(figure)
    axes: Any = figure.subplots(lines, len(plan.contexts), squeeze=False)
    for column, context in enumerate(plan.contexts):
        _times(axes[0][column], plan, cells, found, context)
        if drafted:
            _positions(axes[1][column], plan, cells, context, max(drafted))
    figure.suptitle(figures.text(_title(plan, environment)), fontsize=8, x=0.01, ha="left")
    path.parent.mkdir(parents=True, exist_ok=True)
    figures.save(figure, path)


def _times(
    ax: Any, plan: Plan, cells: Mapping[Cell, Measured], found: Recommendation, context: Context
) -> None:
    for i, batch in enumerate(plan.batches):
        measured = [cells[Cell(number, batch, context)] for number in plan.numbers]
        middle = [one.tpot for one in measured]
        each = [[repeat.tpot for repeat in one.repeats] for one in measured]
        below = [at - min(values) for at, values in zip(middle, each, strict=True)]
        above = [max(values) - at for at, values in zip(middle, each, strict=True)]
        ax.errorbar(
            plan.numbers,
            middle,
            yerr=[below, above],
            color=figures.COLOURS[i % len(figures.COLOURS)],
            marker=figures.MARKERS[i % len(figures.MARKERS)],
            markersize=4,
            linewidth=1.2,
            capsize=2,
            label=f"batch {batch}",
        )
        number = found.parts[context, batch].number
        ax.plot(
            number,
            cells[Cell(number, batch, context)].tpot,
            "o",
            markersize=11,
            color="0.2",
            fillstyle="none",
        )
    tokens = cells[Cell(plan.numbers[0], plan.batches[0], context)].prompt_tokens
    ax.set_title(f"{context} context, {tokens:,.0f} tokens of prompt; ring: best", fontsize=8)
    ax.set_xticks(plan.numbers)
    ax.set_ylim(bottom=0)
    _dress(ax, "drafts", "TPOT, ms (median)")


def _positions(ax: Any, plan: Plan, cells: Mapping[Cell, Measured], context: Context, number: int) -> None:
    for i, batch in enumerate(plan.batches):
        shares = cells[Cell(number, batch, context)].positions
        ax.plot(
            range(1, len(shares) + 1),
            [100 * share for share in shares],
            color=figures.COLOURS[i % len(figures.COLOURS)],
            marker=figures.MARKERS[i % len(figures.MARKERS)],
            markersize=4,
            linewidth=1.2,
            label=f"batch {batch}",
        )
    ax.set_title(f"{number} draft{'s' * (number > 1)} a step", fontsize=8)
    ax.set_xticks(range(1, number + 1))
    ax.set_ylim(0, 100)
    _dress(ax, "position in the draft", "accepted, % of steps")


def _dress(ax: Any, across: str, up: str) -> None:
    ax.set_xlabel(across, fontsize=8)
    ax.set_ylabel(up, fontsize=8)
    ax.tick_params(labelsize=8)
    ax.grid(alpha=0.3)
    ax.legend(fontsize=7)


def _title(plan: Plan, environment: Mapping[str, str]) -> str:
    sampling = "greedy" if plan.temperature == 0 else f"temperature {plan.temperature:g}"
    versions = ", ".join(f"{name} {value}" for name, value in environment.items() if name != "device")
    return "\n".join(
        textwrap.wrap(
            f"{plan.checkpoint.location}: MTP drafts, {sampling}, {plan.repeats} repeats; "
            f"{environment.get('device', '')}; {versions}",
            _WIDTH,
        )
    )
