"""The picture of ``qwen36 tune drafts``: time per token against the count of drafts, and acceptance by position."""

from __future__ import annotations

import textwrap
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from gptq_hybrid.common import figures
from gptq_hybrid.common.extras import need

from .choose import Recommendation
from .grid import Cell, Context, Grid
from .result import CellResult

_WIDTH = 100


def plot(
    grid: Grid,
    cells: Mapping[Cell, CellResult],
    recommendation: Recommendation,
    environment: Mapping[str, str],
    path: Path,
) -> None:
    """Draw into the PNG file ``path``, which appears once it is whole.

    There is one column per context. Above: median TPOT against drafts, with a line per batch, bars from the
    least to the greatest repeat and a ring around the best. Below: the share of drafts accepted by position, for
    the largest count of drafts.

    Raises:
        HybridError: matplotlib is not installed.
    """
    need("matplotlib")
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    drafted = [count for count in grid.counts if count]
    lines = 1 + bool(drafted)
    figure = Figure(figsize=(max(4.4 * len(grid.contexts), 6.4), 3.4 * lines + 0.7), layout="constrained")
    FigureCanvasAgg(figure)
    axes: Any = figure.subplots(lines, len(grid.contexts), squeeze=False)
    for column, context in enumerate(grid.contexts):
        _times(axes[0][column], grid, cells, recommendation, context)
        if drafted:
            _positions(axes[1][column], grid, cells, context, max(drafted))
    figure.suptitle(figures.text(_title(grid, environment)), fontsize=8, x=0.01, ha="left")
    path.parent.mkdir(parents=True, exist_ok=True)
    figures.save(figure, path)


def _times(
    ax: Any,
    grid: Grid,
    cells: Mapping[Cell, CellResult],
    recommendation: Recommendation,
    context: Context,
) -> None:
    for i, batch in enumerate(grid.batches):
        results = [cells[Cell(count, batch, context)] for count in grid.counts]
        medians = [result.tpot for result in results]
        repeats = [[repeat.tpot for repeat in result.repeats] for result in results]
        below = [at - min(values) for at, values in zip(medians, repeats, strict=True)]
        above = [max(values) - at for at, values in zip(medians, repeats, strict=True)]
        ax.errorbar(
            grid.counts,
            medians,
            yerr=[below, above],
            color=figures.COLOURS[i % len(figures.COLOURS)],
            marker=figures.MARKERS[i % len(figures.MARKERS)],
            markersize=4,
            linewidth=1.2,
            capsize=2,
            label=f"batch {batch}",
        )
        best = recommendation.parts[context, batch].count
        ax.plot(
            best,
            cells[Cell(best, batch, context)].tpot,
            "o",
            markersize=11,
            color="0.2",
            fillstyle="none",
        )
    tokens = cells[Cell(grid.counts[0], grid.batches[0], context)].prompt_tokens
    ax.set_title(f"{context} context, {tokens:,.0f} tokens of prompt; ring: best", fontsize=8)
    ax.set_xticks(grid.counts)
    ax.set_ylim(bottom=0)
    _dress(ax, "drafts", "TPOT, ms (median)")


def _positions(ax: Any, grid: Grid, cells: Mapping[Cell, CellResult], context: Context, count: int) -> None:
    for i, batch in enumerate(grid.batches):
        shares = cells[Cell(count, batch, context)].positions
        ax.plot(
            range(1, len(shares) + 1),
            [100 * share for share in shares],
            color=figures.COLOURS[i % len(figures.COLOURS)],
            marker=figures.MARKERS[i % len(figures.MARKERS)],
            markersize=4,
            linewidth=1.2,
            label=f"batch {batch}",
        )
    ax.set_title(f"{count} draft{'s' * (count > 1)} a step", fontsize=8)
    ax.set_xticks(range(1, count + 1))
    ax.set_ylim(0, 100)
    _dress(ax, "position in the draft", "accepted, % of steps")


def _dress(ax: Any, across: str, up: str) -> None:
    ax.set_xlabel(across, fontsize=8)
    ax.set_ylabel(up, fontsize=8)
    ax.tick_params(labelsize=8)
    ax.grid(alpha=0.3)
    ax.legend(fontsize=7)


def _title(grid: Grid, environment: Mapping[str, str]) -> str:
    sampling = "greedy" if grid.temperature == 0 else f"temperature {grid.temperature:g}"
    versions = ", ".join(f"{name} {value}" for name, value in environment.items() if name != "device")
    return "\n".join(
        textwrap.wrap(
            f"{grid.checkpoint.location}: MTP drafts, {sampling}, {grid.repeats} repeats; "
            f"{environment.get('device', '')}; {versions}",
            _WIDTH,
        )
    )
