"""Tables and the picture of README.md, from the results beside it; `run.json` is the recipe `reference`.

    python -m bench.quantize.report [--check] [--no-picture]

`--check` writes nothing and fails if the README is not what would be written.
"""

from __future__ import annotations

from pathlib import Path

from bench.pages import Page
from bench.quantize import tables

_HERE = Path(__file__).parent
REFERENCE, DEFAULT, BYTES, MEMORY, KILL, HESSIAN, QUALITY = (
    _HERE / f"{name}.json" for name in ("run", "default", "bytes", "memory", "kill", "hessian", "quality")
)
PAGE = Page(
    _HERE / "README.md",
    {
        "reference": (REFERENCE, tables.report),
        "default": (DEFAULT, tables.report),
        "bytes": (BYTES, tables.bytes_table),
        "kill": (KILL, tables.kill_table),
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
