"""The picture of ``qwen36 tune prefill``: time against tokens, one panel per shape."""

from __future__ import annotations

import textwrap
from pathlib import Path
from typing import Any

from gptq_hybrid.common import figures
from gptq_hybrid.common.extras import need
from vllm_qwen36_plugin.prefill.shape import Shape

from .result import Tuned
from .table import kernel_name

# Colours of Okabe & Ito, and a marker each.
_STYLES = {
    "stock": ("#000000", "o"),
    "exact": ("#0072B2", "s"),
    "a8": ("#009E73", "D"),
    "fp8": ("#D55E00", "^"),
}
_COLUMNS = 3


def plot(tuned: Tuned, path: Path) -> None:
    """Draw microseconds against tokens, both logarithmic, into the PNG file ``path``; it appears once it is whole.

    A dashed line stands where a route takes over; the legend has the number of tokens.

    Raises:
        HybridError: matplotlib is not installed.
    """
    need("matplotlib")
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    columns = min(_COLUMNS, len(tuned.linears))
    lines = -(-len(tuned.linears) // columns)
    figure = Figure(figsize=(4.2 * columns + 0.4, 3.3 * lines + 0.9), layout="constrained")
    FigureCanvasAgg(figure)
    axes: list[Any] = list(figure.subplots(lines, columns, squeeze=False).flat)
    for ax, shape in zip(axes, tuned.linears, strict=False):
        _panel(ax, tuned, shape)
    for ax in axes[len(tuned.linears) :]:
        ax.set_axis_off()
    figure.suptitle(figures.text(_title(tuned, 26 * (columns + 1))), fontsize=9, x=0.01, ha="left")
    path.parent.mkdir(parents=True, exist_ok=True)
    figures.save(figure, path)


def _panel(ax: Any, tuned: Tuned, shape: Shape) -> None:
    from matplotlib.ticker import FuncFormatter, NullFormatter

    times, starts = tuned.profile.times_us[shape], tuned.profile.starts[shape]
    for route, (colour, marker) in _STYLES.items():
        if route not in times:
            continue
        counts = sorted(times[route])
        start = None if route == "stock" else getattr(starts, route)
        name = f"vLLM, {kernel_name(shape)}" if route == "stock" else route
        ax.plot(
            counts,
            [times[route][tokens] for tokens in counts],
            color=colour,
            marker=marker,
            markersize=4,
            linewidth=1.2,
            label=name if start is None else f"{name} from {start:,} tokens",
        )
        if start is not None:
            ax.axvline(start, color=colour, linestyle="--", linewidth=1)
    ax.set_xscale("log", base=2)
    ax.set_yscale("log")
    ax.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,.0f}"))
    ax.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,g}"))
    ax.yaxis.set_minor_formatter(NullFormatter())
    ax.tick_params(labelsize=8)
    ax.grid(alpha=0.3)
    ax.set_xlabel("tokens", fontsize=8)
    ax.set_ylabel("µs a call", fontsize=8)
    linears = tuned.linears[shape]
    ax.set_title(
        figures.text(f"{linears.name} ({linears.count} ×)\n{shape.k} × {shape.n}, {shape.bits} bit"),
        fontsize=8,
    )
    ax.legend(fontsize=7, loc="lower right")


def _title(tuned: Tuned, width: int) -> str:
    card = tuned.profile.card
    versions = [f"{name} {value}" for name, value in card.versions.items()] if card else []
    where = f"; driver {card.driver}, scratch {card.scratch_mib} MiB" if card else ""
    return "\n".join(
        [
            *textwrap.wrap(f"W4A16 linears, {tuned.profile.source}{where}", width),
            *textwrap.wrap(", ".join(versions), width),
        ]
    )
