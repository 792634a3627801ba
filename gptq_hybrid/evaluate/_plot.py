"""A picture of an evaluation: every figure by domain, with intervals."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

from gptq_hybrid.common import figures
from gptq_hybrid.common.extras import need

from ._result import Evaluation
from .bootstrap import Estimate
from .summary import CheckpointSummary, Summary

# Share of the height of a domain's row that its checkpoints take up.
_BAND = 0.72

GetEstimate = Callable[[Summary], Estimate | None]


def plot_evaluation(evaluation: Evaluation, path: str | Path, *, title: str | None = None) -> None:
    """Draw ``evaluation`` into the PNG file ``path``, which appears only once it is complete.

    There is one row per domain and one panel per figure: mean KLD (logarithmic), top-1 agreement, perplexity
    ratio, and acceptance length if any checkpoint has an MTP head. Bars are 95 % intervals.

    Raises:
        HybridError: matplotlib is not installed.
    """
    path = Path(path)
    need("matplotlib")
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    checkpoints = evaluation.checkpoints
    names = [row.domain for row in _rows(checkpoints[0])]
    has_drafts = any(c.overall.acceptance or c.overall.acceptance_ref for c in checkpoints)
    panels: list[tuple[str, GetEstimate, GetEstimate | None]] = [
        ("mean KLD, nats per token", lambda s: s.kld_mean, None),
        ("top-1 agreement, %", lambda s: _percent(s.top1), None),
        ("perplexity ratio", lambda s: s.perplexity_ratio, None),
    ]
    if has_drafts:
        panels.append(
            (
                "acceptance length, tokens per step",
                lambda s: s.acceptance.length if s.acceptance else None,
                lambda s: s.acceptance_ref.length if s.acceptance_ref else None,
            )
        )
    row_height = 0.19 + 0.08 * len(checkpoints)
    legend_lines = len(checkpoints) + 1
    height = 1.5 + row_height * len(names) + 0.22 * legend_lines
    figure = Figure(figsize=(3.6 * len(panels) + 1.2, height), layout="constrained")
    FigureCanvasAgg(figure)
    axes: list[Any] = list(figure.subplots(1, len(panels), sharey=True, squeeze=False)[0])
    for ax, (label, get, get_reference) in zip(axes, panels, strict=True):
        _draw_panel(ax, checkpoints, get, get_reference)
        ax.set_xlabel(label)
        _style_axes(ax, names)
    _set_log_scale(axes[0], checkpoints)
    # Matplotlib's margin would run past what a share can be.
    axes[1].set_xlim(right=min(100.0, axes[1].get_xlim()[1]))
    axes[2].axvline(1, color="0.35", linewidth=0.9, zorder=1)
    labelled = [(line, line.get_gid()) for line in axes[-1].get_lines() if line.get_gid()]
    figure.legend(
        [line for line, _ in labelled],
        [figures.text(name) for _, name in labelled],
        loc="outside lower left",
        ncols=1,
        frameon=False,
        fontsize=9,
    )
    figure.suptitle(figures.text(title or _title(evaluation)), fontsize=10, x=0.01, ha="left")
    figures.save(figure, path)


def _rows(checkpoint: CheckpointSummary) -> list[Summary]:
    return [checkpoint.overall, *checkpoint.domains]


def _percent(estimate: Estimate) -> Estimate:
    if estimate.low is None or estimate.high is None:
        return Estimate(100 * estimate.value, None, None)
    return Estimate(100 * estimate.value, 100 * estimate.low, 100 * estimate.high)


def _draw_panel(
    ax: Any, checkpoints: tuple[CheckpointSummary, ...], get: GetEstimate, get_reference: GetEstimate | None
) -> None:
    series = len(checkpoints) + (get_reference is not None)
    step = _BAND / max(series, 2)
    offsets = [(i - (series - 1) / 2) * step for i in range(series)]
    if get_reference is not None:
        # The reference's figures are the same in every comparison.
        _draw_series(ax, checkpoints[0], get_reference, offsets[0], "black", "|", "reference")
        offsets = offsets[1:]
    for i, (checkpoint, offset) in enumerate(zip(checkpoints, offsets, strict=True)):
        marker = figures.MARKERS[(i + i // len(figures.COLOURS)) % len(figures.MARKERS)]
        _draw_series(
            ax, checkpoint, get, offset, figures.COLOURS[i % len(figures.COLOURS)], marker, checkpoint.name
        )


def _draw_series(
    ax: Any,
    checkpoint: CheckpointSummary,
    get: GetEstimate,
    offset: float,
    colour: str,
    marker: str,
    label: str,
) -> None:
    points = [(i + offset, e) for i, s in enumerate(_rows(checkpoint)) if (e := get(s)) is not None]
    ax.plot(
        [e.value for _, e in points],
        [y for y, _ in points],
        linestyle="none",
        marker=marker,
        markersize=4.5 if marker != "|" else 8,
        color=colour,
        gid=label,
        zorder=3,
    )
    for y, e in points:
        if e.low is not None and e.high is not None:
            ax.plot([e.low, e.high], [y, y], color=colour, linewidth=1.4, solid_capstyle="butt", zorder=2)


def _style_axes(ax: Any, names: list[str]) -> None:
    ax.set_yticks(range(len(names)), [figures.text(name) for name in names])
    ax.set_ylim(len(names) - 0.5, -0.5)
    for i in range(0, len(names), 2):
        ax.axhspan(i - 0.5, i + 0.5, color="0.955", zorder=0, linewidth=0)
    ax.axhline(0.5, color="0.35", linewidth=0.9)
    ax.grid(axis="x", color="0.86", linewidth=0.6, zorder=0.5)
    ax.tick_params(axis="y", length=0)
    ax.tick_params(axis="x", labelsize=8)
    ax.ticklabel_format(axis="x", useOffset=False)
    ax.locator_params(axis="x", nbins=5)
    for side in ("top", "right", "left"):
        ax.spines[side].set_visible(False)


def _set_log_scale(ax: Any, checkpoints: tuple[CheckpointSummary, ...]) -> None:
    """Make the axis logarithmic, unless there is a KLD of zero: a checkpoint compared with itself."""
    estimates = [s.kld_mean for c in checkpoints for s in _rows(c)]
    values = [v for e in estimates for v in (e.value, e.low, e.high) if v is not None]
    if min(values) <= 0:
        return
    from matplotlib.ticker import FuncFormatter, LogLocator, MaxNLocator, NullLocator

    ax.set_xscale("log")
    decades = math.log10(max(values) / min(values))
    if decades > 0.8:
        ax.xaxis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0) if decades < 2 else (1.0,)))
    else:
        ax.xaxis.set_major_locator(MaxNLocator(4))
    ax.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    ax.xaxis.set_minor_locator(NullLocator())


def _title(evaluation: Evaluation) -> str:
    overall = evaluation.checkpoints[0].overall
    where = str(evaluation.environment.get("device", ""))
    lines = [
        f"Against {evaluation.reference}: {overall.documents:,} documents, {overall.tokens:,} tokens; "
        "bars are 95 % intervals over documents; all: domains weigh alike",
        "; ".join(
            [where] * bool(where) + [f"{k} {v}" for k, v in evaluation.environment.items() if k != "device"]
        ),
    ]
    return "\n".join(line for line in lines if line)
