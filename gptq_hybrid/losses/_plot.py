"""Loss by layer, a line a kind of module, a panel a block."""

from __future__ import annotations

import textwrap
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from gptq_hybrid.common import figures
from gptq_hybrid.common.errors import HybridError

from ._flags import FLAGS, flags_of
from ._modules import Measure, ModuleLoss, measure_of, value_of
from .columns import LossLog

_LABELS = {
    "relative_error": "relative error of the output",
    "loss": "loss as gptqmodel logs it",
}
_WIDTH = 9.0
_COLUMNS = 120  # characters of a title across that width


def plot_losses(log: LossLog, path: Path) -> None:
    """Draw ``log`` into the PNG file ``path``, which appears once it is whole.

    Losses are on a logarithmic scale, the same in each panel if they are relative errors, which compare
    across blocks. Outliers are ringed. Modules without a loss (fallbacks, NaN) are crosses at the top.

    Raises:
        HybridError: matplotlib is not installed, or no module has a loss above zero.
    """
    measure, flags = measure_of(log.modules), flags_of(log.modules)
    drawn = [m for m in log.modules if m.layer is not None]
    if not any((value_of(m, measure) or 0.0) > 0 for m in drawn):
        raise HybridError(
            f"{log.source}: no module of a layer has a loss above zero, there is nothing to draw",
            remedy="Run without --plot to see what the log says.",
        )
    # Here, for it imports torch: 4 s that reading a log need not take.
    from gptq_hybrid.common.extras import need

    need("matplotlib")
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    blocks = list(dict.fromkeys(_block(m) for m in drawn))
    figure = Figure(figsize=(_WIDTH, 1.1 + 2.3 * len(blocks)), layout="constrained")
    FigureCanvasAgg(figure)
    axes: list[Any] = list(
        figure.subplots(len(blocks), 1, sharex=True, sharey=measure == "relative_error", squeeze=False)[:, 0]
    )
    for ax, block in zip(axes, blocks, strict=True):
        ax.set_yscale("log")
        _panel(ax, [m for m in drawn if _block(m) == block], measure, flags)
        ax.set_title(figures.text(block or "others"), fontsize=9, loc="left")
    axes[-1].set_xlabel("layer", fontsize=9)
    axes[-1].xaxis.get_major_locator().set_params(integer=True)
    figure.supylabel(_LABELS[measure], fontsize=9)
    figure.suptitle(figures.text(_title(log, flags)), fontsize=9, x=0.01, ha="left")
    path.parent.mkdir(parents=True, exist_ok=True)
    figures.save(figure, path)


def _block(module: ModuleLoss) -> str:
    return module.kind.rpartition(".")[0]


def _panel(
    ax: Any, modules: Sequence[ModuleLoss], measure: Measure, flags: dict[str, tuple[str, ...]]
) -> None:

    for i, kind in enumerate(dict.fromkeys(m.kind for m in modules)):
        group = sorted((m for m in modules if m.kind == kind), key=lambda m: m.layer or 0)
        colour = figures.COLOURS[i % len(figures.COLOURS)]
        points = [(m, v) for m in group if (v := value_of(m, measure)) is not None and v > 0]
        ax.plot(
            [m.layer for m, _ in points],
            [v for _, v in points],
            color=colour,
            linewidth=0.9,
            marker=figures.MARKERS[i % len(figures.MARKERS)],
            markersize=3.5,
            label=figures.text(kind.rpartition(".")[2]),
        )
        ringed = [(m, v) for m, v in points if "outlier" in flags[m.name]]
        _marks(ax, [m for m, _ in ringed], [v for _, v in ringed], "o", "outlier")
        missing = [m for m in group if value_of(m, measure) is None]
        # In shares of the panel's height, for they have no loss.
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
    modules: Sequence[ModuleLoss],
    heights: Sequence[float],
    marker: str,
    label: str,
    colour: str = "black",
    **options: Any,
) -> None:
    """Hollow marks of one sort, named once a panel."""
    if not modules:
        return
    named = label in ax.get_legend_handles_labels()[1]
    look = {"markerfacecolor": "none", "markeredgecolor": colour, "markersize": 8, "markeredgewidth": 1.3}
    layers = [m.layer for m in modules]
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
    counts = {flag: sum(flag in found for found in flags.values()) for flag in FLAGS}
    said = "; ".join(f"{FLAGS[flag]}: {count}" for flag, count in counts.items() if count)
    where = Path(log.source).name or log.source
    return "\n".join(textwrap.wrap(f"{where}: {len(log.modules)} modules; {said or 'all fine'}", _COLUMNS))
