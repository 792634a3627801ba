"""The picture of a receipt: times by context and batch, and acceptance by position and domain."""

from __future__ import annotations

import textwrap
from pathlib import Path
from typing import Any

from gptq_hybrid.common import figures
from gptq_hybrid.common.extras import need

from .record import Measured, Receipt
from .summary import Estimate, acceptance_by_position, median, over_repeats
from .table import domain_name, summary


def plot(receipt: Receipt, path: Path) -> None:
    """Draw into the PNG file ``path``, which appears once it is whole.

    Above: medians of TTFT and TPOT and tokens a second by batch, a line per context, bars are 95 % intervals.
    Below: share of drafts accepted by position, a line per domain at batch 1, and the time between parts of a
    stream.

    Raises:
        HybridError: matplotlib is not installed.
    """
    need("matplotlib")
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    measured = [m for m in receipt.cells.values() if m.repeats]
    drafts = [m for m in measured if m.cell.batch == 1 and acceptance_by_position(m.repeats)]
    figure = Figure(figsize=(11, 3.6 * (1 + bool(drafts))), layout="constrained")
    FigureCanvasAgg(figure)
    axes: Any = figure.subplots(1 + bool(drafts), 3, squeeze=False)
    lines = _lines(measured)
    for column, (title, of) in enumerate(
        (
            ("time to first token, ms", lambda repeats: median(repeats, lambda r: r.ttft_ms)),
            ("time per token, ms", lambda repeats: median(repeats, lambda r: r.tpot_ms)),
            ("tokens a second, all requests", lambda repeats: over_repeats([r.throughput for r in repeats])),
        )
    ):
        _by_batch(axes[0][column], lines, title, of)
    if drafts:
        _by_position(axes[1][0], drafts)
        _gaps(axes[1][1], measured)
        axes[1][2].axis("off")
    words = textwrap.wrap(" ".join(summary(receipt)), 150)
    figure.suptitle(figures.text("\n".join(words)), fontsize=8, x=0.01, ha="left")
    path.parent.mkdir(parents=True, exist_ok=True)
    figures.save(figure, path)


def _lines(measured: list[Measured]) -> dict[str, dict[int, list[Any]]]:
    """Repeats by line and batch; at batch 1 the domains of the short context together."""
    lines: dict[str, dict[int, list[Any]]] = {}
    for each in measured:
        name = f"{each.cell.context} context" + (", warm" if each.cell.cache == "warm" else "")
        lines.setdefault(name, {}).setdefault(each.cell.batch, []).extend(each.repeats)
    return lines


def _by_batch(ax: Any, lines: dict[str, dict[int, list[Any]]], title: str, of: Any) -> None:
    for number, (name, batches) in enumerate(lines.items()):
        points: list[tuple[int, Estimate]] = [
            (batch, estimate) for batch, repeats in sorted(batches.items()) if (estimate := of(repeats))
        ]
        if not points:
            continue
        values = [estimate.value for _, estimate in points]
        ends = [
            [max(0.0, e.value - (e.value if e.low is None else e.low)) for _, e in points],
            [max(0.0, (e.value if e.high is None else e.high) - e.value) for _, e in points],
        ]
        ax.errorbar(
            [batch for batch, _ in points],
            values,
            yerr=ends,
            color=figures.COLOURS[number % len(figures.COLOURS)],
            marker=figures.MARKERS[number % len(figures.MARKERS)],
            markersize=4,
            linewidth=1.2,
            capsize=2,
            label=name,
        )
    ax.set_xscale("log", base=2)
    ax.set_ylim(bottom=0)
    batches_seen = sorted({batch for each in lines.values() for batch in each})
    ax.set_xticks(batches_seen, [str(batch) for batch in batches_seen])
    _dress(ax, "requests at once", title)


def _by_position(ax: Any, drafts: list[Measured]) -> None:
    for number, each in enumerate(drafts[: len(figures.COLOURS)]):
        shares = acceptance_by_position(each.repeats)
        ax.plot(
            range(1, len(shares) + 1),
            [100 * share for share in shares],
            color=figures.COLOURS[number],
            marker=figures.MARKERS[number],
            markersize=4,
            linewidth=1.2,
            label=figures.text(f"{domain_name(each.cell.domain)}, {each.cell.context}"),
        )
    ax.set_ylim(0, 100)
    ax.set_xticks(range(1, 1 + max(len(acceptance_by_position(each.repeats)) for each in drafts)))
    _dress(ax, "position in the draft", "accepted, % of steps")


def _gaps(ax: Any, measured: list[Measured]) -> None:
    """Quantiles of the time between parts of a stream, for the first cell of each batch."""
    seen: set[int] = set()
    for each in measured:
        if each.cell.batch in seen or len(seen) == len(figures.COLOURS):
            continue
        number = len(seen)
        seen.add(each.cell.batch)
        gaps = each.repeats[0].itl_ms
        points = sorted((float(share), value) for share, value in gaps.items() if share[0].isdigit())
        ax.plot(
            [value for _, value in points],
            [100 * share for share, _ in points],
            color=figures.COLOURS[number],
            linewidth=1.2,
            label=figures.text(f"batch {each.cell.batch}"),
        )
    _dress(ax, "time between parts of a stream, ms", "share below, %")


def _dress(ax: Any, across: str, up: str) -> None:
    ax.set_xlabel(across, fontsize=8)
    ax.set_ylabel(up, fontsize=8)
    ax.tick_params(labelsize=8)
    ax.grid(alpha=0.3)
    if ax.get_legend_handles_labels()[0]:
        ax.legend(fontsize=7)
