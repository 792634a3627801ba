"""Draw losses by layer: a line for each kind of module, a panel for each block."""

from __future__ import annotations

import textwrap
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from gptq_hybrid.common import figures
from gptq_hybrid.common.errors import HybridError
from gptq_hybrid.common.extras import need

from ._flags import FLAGS, find_flags
from ._record import Measure, ModuleRecord, common_measure, measured
from ._report import count_flags
from .quant_log import LossLog

_LABELS = {
    "relative_error": "relative error of the output",
    "loss": "loss as gptqmodel logs it",
}
_WIDTH = 9.0
_COLUMNS = 120  # characters of a title across that width


def plot_losses(log: LossLog, path: str | Path) -> None:
    """Draw ``log`` into the PNG file ``path``, which appears once it is whole.

    Losses are on a logarithmic scale. Panels share it if the losses are relative errors, which compare across
    blocks. Outliers are ringed. Modules without a loss (fallbacks, NaN) are crosses at the top.

    Raises:
        HybridError: matplotlib is not installed, or no module has a loss above zero.
    """
    path = Path(path)
    measure, flags = common_measure(log.modules), find_flags(log.modules)
    drawn = [record for record in log.modules if record.layer is not None]
    if not any((measured(record, measure) or 0.0) > 0 for record in drawn):
        raise HybridError(
            f"{log.source}: no module of a layer has a loss above zero, there is nothing to draw",
            remedy="Run without --plot to see what the log says.",
        )
    need("matplotlib")
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    blocks = list(dict.fromkeys(_block(record) for record in drawn))
    figure = Figure(figsize=(_WIDTH, 1.1 + 2.3 * len(blocks)), layout="constrained")
    FigureCanvasAgg(figure)
    axes: list[Any] = list(
        figure.subplots(len(blocks), 1, sharex=True, sharey=measure == "relative_error", squeeze=False)[:, 0]
    )
    for ax, block in zip(axes, blocks, strict=True):
        ax.set_yscale("log")
        _panel(ax, [record for record in drawn if _block(record) == block], measure, flags)
        ax.set_title(figures.text(block or "others"), fontsize=9, loc="left")
    axes[-1].set_xlabel("layer", fontsize=9)
    axes[-1].xaxis.get_major_locator().set_params(integer=True)
    figure.supylabel(_LABELS[measure], fontsize=9)
    figure.suptitle(figures.text(_title(log, flags)), fontsize=9, x=0.01, ha="left")
    path.parent.mkdir(parents=True, exist_ok=True)
    figures.save(figure, path)


def _block(record: ModuleRecord) -> str:
    return record.kind.rpartition(".")[0]


def _panel(
    ax: Any, records: Sequence[ModuleRecord], measure: Measure, flags: dict[str, tuple[str, ...]]
) -> None:
    for i, kind in enumerate(dict.fromkeys(record.kind for record in records)):
        group = sorted((r for r in records if r.kind == kind), key=lambda r: r.layer or 0)
        colour = figures.COLOURS[i % len(figures.COLOURS)]
        points = [(r, value) for r in group if (value := measured(r, measure)) is not None and value > 0]
        ax.plot(
            [r.layer for r, _ in points],
            [value for _, value in points],
            color=colour,
            linewidth=0.9,
            marker=figures.MARKERS[i % len(figures.MARKERS)],
            markersize=3.5,
            label=figures.text(kind.rpartition(".")[2]),
        )
        ringed = [(r, value) for r, value in points if "outlier" in flags[r.name]]
        _marks(ax, [r for r, _ in ringed], [value for _, value in ringed], "o", "outlier")
        missing = [r for r in group if measured(r, measure) is None]
        # They have no loss, so they are placed by shares of the panel's height.
        _marks(
            ax,
            missing,
            [0.95] * len(missing),
            "x",
            "no loss",
            colour,
            transform=ax.get_xaxis_transform(),
        )
    ax.grid(axis="y", color="0.86", linewidth=0.6)
    ax.set_axisbelow(True)
    ax.tick_params(labelsize=8)
    for side in ("top", "right"):
        ax.spines[side].set_visible(False)
    ax.legend(fontsize=8, frameon=False, loc="center left", bbox_to_anchor=(1.0, 0.5))


def _marks(
    ax: Any,
    records: Sequence[ModuleRecord],
    heights: Sequence[float],
    marker: str,
    label: str,
    colour: str = "black",
    **options: Any,
) -> None:
    """Draw hollow marks of one sort, which the legend of the panel names once."""
    if not records:
        return
    named = label in ax.get_legend_handles_labels()[1]
    look = {"markerfacecolor": "none", "markeredgecolor": colour, "markersize": 8, "markeredgewidth": 1.3}
    layers = [record.layer for record in records]
    ax.plot(
        layers,
        heights,
        linestyle="none",
        marker=marker,
        label="_" if named else label,
        zorder=4,
        **look,
        **options,
    )


def _title(log: LossLog, flags: dict[str, tuple[str, ...]]) -> str:
    faults = "; ".join(f"{FLAGS[flag]}: {count}" for flag, count in count_flags(flags).items() if count)
    where = Path(log.source).name or log.source
    return "\n".join(textwrap.wrap(f"{where}: {len(log.modules)} modules; {faults or 'all fine'}", _COLUMNS))
