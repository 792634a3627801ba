"""Tables and the picture of README.md, from the results beside it.

    python -m bench.prefill.report [--check] [--no-picture]

`--check` writes nothing and fails if the README is not what would be written.
"""

from __future__ import annotations

import argparse
import re
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from bench.act_order.results import Json, load
from bench.prefill import engine_tables, linear_tables, quality_tables

HERE = Path(__file__).parent
README, PICTURE = HERE / "README.md", HERE / "linear.png"
LINEAR, LINEAR_FP16, ENGINE = HERE / "linear.json", HERE / "linear-fp16.json", HERE / "engine.json"
QUALITY = HERE / "quality.json"
_BLOCK = re.compile(r"<!-- table: (\S+) -->\n(.*?)<!-- end -->", re.DOTALL)
TABLES: dict[str, tuple[Path, Callable[[Json], str]]] = {
    "pass": (LINEAR, linear_tables.pass_table),
    "pass-fp16": (LINEAR_FP16, linear_tables.pass_table),
    "worst": (LINEAR, linear_tables.worst_table),
    "expansion": (LINEAR, linear_tables.expansion_table),
    "sizes": (LINEAR, linear_tables.sizes_table),
    "roofline": (LINEAR, linear_tables.roofline_table),
    "shapes": (LINEAR, linear_tables.shape_table),
    "engine": (ENGINE, engine_tables.report),
    "quality": (QUALITY, quality_tables.report),
}


def filled(text: str, results: dict[Path, Json | None]) -> str:
    """``text`` with every table between its markers.

    Raises:
        ValueError: a marker names no table, or a table has no marker.
    """
    names = [match[1] for match in _BLOCK.finditer(text)]
    if sorted(names) != sorted(TABLES):
        raise ValueError(f"README.md has markers for {sorted(names)}, there are tables {sorted(TABLES)}")

    def block(match: re.Match[str]) -> str:
        path, draw = TABLES[match[1]]
        result = results[path]
        body = "Not measured yet." if result is None else draw(result)
        return f"<!-- table: {match[1]} -->\n{body}\n<!-- end -->"

    return _BLOCK.sub(block, text)


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


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--check", action="store_true", help="write nothing; exit 1 if the README is stale")
    parser.add_argument("--no-picture", action="store_true")
    args = parser.parse_args()
    results = {path: load(path) for path, _ in TABLES.values()}
    current = README.read_text(encoding="utf-8")
    text = filled(current, results)
    if args.check:
        if text != current:
            sys.exit("README.md does not hold the tables of the results: run python -m bench.prefill.report")
        return
    from gptq_hybrid.checkpoint._atomic import write_text_atomic

    write_text_atomic(README, text)
    linear = results[LINEAR]
    if linear and not args.no_picture:
        picture(linear).savefig(PICTURE, dpi=110, metadata={"Software": None})


if __name__ == "__main__":
    main()
