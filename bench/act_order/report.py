"""Tables and the picture of README.md, from `gemm.json`, `engine.json`, `agreement.json` and `served.json`.

python -m bench.pages act_order
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from bench.act_order import tables
from bench.act_order.results import AGREEMENT, ENGINE, GEMM, MODULES, SERVED, extras
from bench.pages import Page
from bench.results import Json

README = Path(__file__).with_name("README.md")
TABLES: dict[str, tuple[Path, Callable[[Json], str]]] = {
    "total": (GEMM, tables.gemm_total),
    "extras": (GEMM, tables.gemm_extras),
    "norms": (GEMM, tables.gemm_norms),
    "times": (GEMM, tables.gemm_times),
    "engine": (ENGINE, tables.engine_table),
    "agreement": (AGREEMENT, tables.agreement_table),
    "served": (SERVED, tables.served_table),
}


def picture(result: Json) -> Any:
    """What act order adds to a call, by module, a panel for each M below 1024."""
    from matplotlib.figure import Figure

    rows = {(row["module"], row["m"]): extras(row) for row in result["rows"]}
    sizes = sorted({m for _, m in rows if m < 1024})
    if not sizes:
        raise ValueError("gemm.json has no M below 1024 to draw")
    names = [module.name for module in MODULES if any((module.name, m) in rows for m in sizes)]
    bars = [
        ("stock", "stock", "#b0b0b0"),
        ("ours", "ours", "#7fb2e5"),
        ("ours_compiled", "ours, compiled", "#1f5fa8"),
    ]
    figure = Figure(figsize=(3.2 * len(sizes) + 1, 3.6), layout="constrained")
    for axes, m in zip(figure.subplots(1, len(sizes), sharey=True, squeeze=False)[0], sizes, strict=True):
        for place, (key, label, color) in enumerate(bars):
            heights = [rows.get((name, m), {}).get(key, float("nan")) for name in names]
            axes.bar(
                [i + (place - 1) * 0.27 for i in range(len(names))], heights, 0.27, label=label, color=color
            )
        axes.set_title(f"M = {m}")
        axes.set_xticks(range(len(names)), names, rotation=45)
        axes.axhline(0, color="black", linewidth=0.6)
        axes.grid(axis="y", alpha=0.3)
    figure.axes[0].set_ylabel("added by act order, µs a call")
    figure.axes[-1].legend()
    figure.suptitle(tables.where(result["environment"]), fontsize=9)
    return figure


PAGE = Page(
    README,
    {name: (draw, file) for name, (file, draw) in TABLES.items()},
    {"gemm.png": (picture, GEMM)},
)
