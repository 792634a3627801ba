"""``quant_log.csv``: gptqmodel's columns, joined by what this project measured."""

from __future__ import annotations

import csv
import io
from collections.abc import Mapping
from pathlib import Path

from gptq_hybrid.checkpoint import write_text_atomic
from gptq_hybrid.compat import ModuleRecord

_COLUMNS = ("layer", "module", "loss", "samples", "damp", "time")
_ADDED = ("relative_error", "dead_columns", "outcome")


def extend_quant_log(path: Path, records: Mapping[str, ModuleRecord]) -> None:
    """Add the relative error, dead columns and outcome of each module to gptqmodel's log.

    6.0.3 writes six headers over five values; columns are named by position here.
    """
    if not path.exists():
        return
    by_layer = {_key(record.module): record for record in records.values()}
    with path.open(newline="", encoding="utf-8") as handle:
        rows = [row for row in list(csv.reader(handle))[1:] if len(row) > 1]
    # Worker threads log as they finish; sorted, two runs compare line by line.
    rows.sort(key=lambda row: (int(row[0]) if row[0].isdigit() else -1, row[1]))
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow((*_COLUMNS, *_ADDED))
    for row in rows:
        found = by_layer.get((row[0], row[1].rpartition(".")[2]))
        error = "" if found is None or found.relative_error is None else f"{found.relative_error:.6e}"
        padded = [*row, *[""] * (len(_COLUMNS) - len(row))]
        if found is not None and found.outcome == "gptaq":
            # gptqmodel counts rows there, and tokens for GPTQ.
            padded[_COLUMNS.index("samples")] = str(found.tokens)
        writer.writerow((*padded, error, found.dead_columns if found else "", found.outcome if found else ""))
    write_text_atomic(path, out.getvalue())


def _key(module: str) -> tuple[str, str]:
    """``…layers.7.mlp.up_proj`` → ``("7", "up_proj")``; leaf names are unique within a layer."""
    parts = module.split(".")
    layer = parts[parts.index("layers") + 1] if "layers" in parts else ""
    return layer, parts[-1]
