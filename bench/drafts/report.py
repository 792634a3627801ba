"""Tables and the picture of README.md, from the results beside it.

python -m bench.pages drafts
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from bench.drafts import acceptance_tables, engine_tables
from bench.pages import Page
from bench.results import Json
from bench.tables import where

HERE = Path(__file__).parent
README, ENGINE = HERE / "README.md", HERE / "engine.json"
TABLES: dict[str, tuple[Path, Callable[[Json], str]]] = {
    "acceptance": (HERE / "acceptance.json", acceptance_tables.report),
    "acceptance-gpu": (HERE / "acceptance-gpu.json", acceptance_tables.report),
    "acceptance-more": (HERE / "acceptance-more.json", acceptance_tables.report),
    "parts": (HERE / "parts.json", acceptance_tables.parts_table),
    "engine": (ENGINE, engine_tables.report),
    "engine-h100": (HERE / "engine-h100.json", engine_tables.report),
}


def picture(result: Json) -> Any:
    """Kernels of a step by way: what a step without drafts takes, and what drafts add, a panel for each batch.

    Raises:
        ValueError: nothing was run on a GPU, or not without drafts.
    """
    from matplotlib.figure import Figure

    runs = result["runs"]
    names = [name for name in runs if name != "none-4"]
    batches = list(next(iter(runs.values()))["steps"])
    figure = Figure(figsize=(4.2 * len(batches), 0.45 * len(names) + 1.4), layout="constrained")
    for axes, batch in zip(figure.subplots(1, len(batches), squeeze=False)[0], batches, strict=True):
        base = None if "none" not in runs else engine_tables.gpu_ms(runs["none"], batch)
        if base is None:
            raise ValueError("no step without drafts was timed on a GPU")
        added = [(engine_tables.gpu_ms(runs[name], batch) or base) - base for name in names]
        axes.barh(names, [base] * len(names), color="#b0b0b0", label="without drafts")
        axes.barh(names, added, left=base, color="#1f5fa8", label="two drafts")
        axes.invert_yaxis()
        axes.set_title(f"batch {batch}", fontsize=9)
        axes.set_xlabel("kernels of a step, ms")
        axes.grid(axis="x", alpha=0.3)
    figure.axes[-1].legend(fontsize=8)
    layers = result["settings"]["layers"]
    figure.suptitle(f"{where(next(iter(runs.values()))['environment'])}; {layers} layers", fontsize=8)
    return figure


PAGE = Page(
    README,
    {name: (draw, file) for name, (file, draw) in TABLES.items()},
    {"engine.png": (picture, ENGINE)},
)
