"""Draw where the memory of a card goes: one stacked bar for each number of drafts."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from gptq_hybrid.common import figures as drawing
from gptq_hybrid.common.extras import need

from .figures import Figure, figures
from .solve import Plan

_GIB = 1 << 30
_GROUPS = {
    "weights": drawing.COLOURS[0],
    "keys and values": drawing.COLOURS[2],
    "states": drawing.COLOURS[3],
    "free cache": drawing.COLOURS[5],
    "running": drawing.COLOURS[4],
    "not used": "#BBBBBB",
}
# Narrower parts get no label of their own.
_LABEL_GIB = 0.06


def draw(plan: Plan) -> Any:
    """Return a matplotlib figure; parts of a group share its colour.

    Raises:
        HybridError: matplotlib is not installed.
    """
    need("matplotlib")
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure as Canvas

    canvas = Canvas(figsize=(9.0, 1.6 + 0.75 * len(plan.drafts)), layout="constrained")
    FigureCanvasAgg(canvas)
    ax = canvas.add_subplot()
    memory = plan.question.memory / _GIB
    for row, option in enumerate(plan.drafts):
        _bar(ax, row, figures(plan.question, option.fit, tokens=plan.tokens), memory)
    ax.axvline(plan.fit.usable / _GIB, color="black", linewidth=1, linestyle="--")
    ax.axvline(memory, color="black", linewidth=1)
    names = [f"{number} draft{'' if number == 1 else 's'}" for number in (o.fit.drafts for o in plan.drafts)]
    ax.set_yticks(range(len(names)), names)
    ax.invert_yaxis()
    ax.set_xlim(left=0)
    ax.set_xlabel("GiB; dashed: what vLLM may take", fontsize=9)
    for name, colour in _GROUPS.items():
        ax.bar(0, 0, color=colour, label=name)
    ax.legend(fontsize=8, ncols=len(_GROUPS), loc="lower center", bbox_to_anchor=(0.5, 1.0), frameon=False)
    load = f"{plan.fit.sequences} × {plan.tokens:,} tokens at once, KV {plan.fit.kv_dtype}"
    canvas.suptitle(drawing.text(f"{plan.question.card.name}: {load}"), fontsize=10)
    return canvas


def _bar(ax: Any, row: int, parts: list[Figure], memory: float) -> None:
    left = 0.0
    for part in parts:
        width = part.bytes / _GIB
        ax.barh(
            row, width, left=left, color=_GROUPS[part.group], edgecolor="white", linewidth=0.8, height=0.62
        )
        if width > _LABEL_GIB * memory:
            label = f"{part.part.replace(' states', '')}\n{width:.1f}"
            ax.text(left + width / 2, row, label, ha="center", va="center", fontsize=6)
        left += width


def plot_plan(plan: Plan, path: str | Path) -> None:
    """Draw a plan into the PNG file ``path``, which appears once it is whole."""
    drawing.save(draw(plan), Path(path))
