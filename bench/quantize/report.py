"""Tables and the picture of README.md, from `run.json` (the recipe `reference`), `default.json`, `memory.json` and
`hessian.json`.

    python -m bench.quantize.report [--check] [--no-picture]

`--check` writes nothing and fails if the README is not what would be written.
"""

from __future__ import annotations

from pathlib import Path

from bench.pages import Page
from bench.quantize import tables

_HERE = Path(__file__).parent
REFERENCE, DEFAULT, MEMORY, HESSIAN, QUALITY = (
    _HERE / f"{name}.json" for name in ("run", "default", "memory", "hessian", "quality")
)
PAGE = Page(
    _HERE / "README.md",
    {
        "reference": (REFERENCE, tables.report),
        "default": (DEFAULT, tables.report),
        "memory": (MEMORY, tables.memory_table),
        "hessian": (HESSIAN, tables.hessian_table),
        "quality": (QUALITY, tables.quality_table),
    },
    _HERE / "run.png",
    REFERENCE,
    tables.picture,
)

if __name__ == "__main__":
    PAGE.main("bench.quantize.report", __doc__)
