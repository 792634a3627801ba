"""Tables and the picture of README.md, from the results beside it.

python -m bench.pages prefill
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from bench.pages import Page
from bench.prefill import engine_gemms, engine_tables, engine_targets, linear_tables, quality_tables
from bench.results import Json

HERE = Path(__file__).parent
README = HERE / "README.md"
LINEAR, LINEAR_FP16, ENGINE = HERE / "linear.json", HERE / "linear-fp16.json", HERE / "engine.json"
ENGINE_H100, TRITON, GRAPHS = (HERE / f"{name}.json" for name in ("engine-h100", "engine-triton", "graphs"))
QUALITY = HERE / "quality.json"
SERVING, SERVING_H100, LINEAR_H100 = (
    HERE / f"{name}.json" for name in ("serving", "serving-h100", "linear-h100")
)
TABLES: dict[str, tuple[Path, Callable[[Json], str]]] = {
    "pass": (LINEAR, linear_tables.pass_table),
    "pass-fp16": (LINEAR_FP16, linear_tables.pass_table),
    "pass-h100": (LINEAR_H100, linear_tables.pass_table),
    "worst": (LINEAR, linear_tables.worst_table),
    "expansion": (LINEAR, linear_tables.expansion_table),
    "sizes": (LINEAR, linear_tables.sizes_table),
    "roofline": (LINEAR, linear_tables.roofline_table),
    "shapes": (LINEAR, linear_tables.shape_table),
    "targets": (ENGINE, engine_targets.targets_table),
    "engine": (ENGINE, engine_tables.report),
    "graphs": (GRAPHS, engine_targets.graphs_table),
    "graphs-ttft": (GRAPHS, engine_tables.ttft_table),
    "triton": (TRITON, engine_targets.targets_table),
    "engine-h100": (ENGINE_H100, engine_tables.report),
    "load": (SERVING, engine_tables.load_table),
    "load-h100": (SERVING_H100, engine_tables.load_table),
    "gemms": (ENGINE, engine_gemms.gemms_table),
    "e4m3": (HERE / "e4m3.json", linear_tables.e4m3_table),
    "quality": (QUALITY, quality_tables.report),
}


def picture(result: Json) -> Any:
    """Time against rows, a panel a shape and layout, both axes logarithmic."""
    from matplotlib.figure import Figure

    shapes = result["shapes"]
    layouts = list(dict.fromkeys(shape["shape"].split()[0] for shape in shapes))
    modules = list(dict.fromkeys(shape["module"] for shape in shapes))
    lines = [("stock", "#808080"), ("exact", "#1f5fa8"), ("fp8", "#d9822b"), ("cublas", "#b8d8b8")]
    figure = Figure(figsize=(3.1 * len(modules), 3.0 * len(layouts) + 0.6), layout="constrained")
    grid = figure.subplots(len(layouts), len(modules), sharex=True, squeeze=False)
    for shape in shapes:
        axes = grid[layouts.index(shape["shape"].split()[0])][modules.index(shape["module"])]
        for name, color in lines:
            points = [(row["m"], row["times"][name]["us"]) for row in shape["rows"] if name in row["times"]]
            if points:
                axes.plot(
                    *zip(*points, strict=True), color=color, label="dense" if name == "cublas" else name
                )
        for path, color in (("exact", "#1f5fa8"), ("fp8", "#d9822b")):
            if shape["starts"][path]:
                axes.axvline(shape["starts"][path], color=color, linewidth=0.8, linestyle=":")
        axes.set_xscale("log", base=2)
        axes.set_yscale("log")
        axes.set_title(f"{shape['module']}, {shape['stock'].removesuffix('LinearKernel')}", fontsize=9)
        axes.grid(alpha=0.3)
    for row in grid:
        row[0].set_ylabel("µs a call")
    for axes in grid[-1]:
        axes.set_xlabel("rows")
    grid[0][0].legend(fontsize=8)
    figure.suptitle(linear_tables.environment(result) + "; dotted: where a path starts", fontsize=9)
    return figure


PAGE = Page(
    README,
    {name: (draw, file) for name, (file, draw) in TABLES.items()},
    {"linear.png": (picture, LINEAR)},
)
