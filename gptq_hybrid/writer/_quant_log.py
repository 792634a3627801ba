"""``quant_log.csv``: gptqmodel's columns, joined by what this project measured."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterable, Mapping
from pathlib import Path

from gptq_hybrid.common.atomic import write_text_atomic
from gptq_hybrid.losses import ModuleLoss, flags_of
from gptq_hybrid.losses.columns import ADDED, STOCK, with_samples
from gptq_hybrid.upstream import ModuleRecord


def extend_quant_log(path: Path, records: Mapping[str, ModuleRecord]) -> None:
    """Add to gptqmodel's log what is known of each module: the columns ``gptq_hybrid.losses`` names.

    6.0.3 writes six headers over five values, of which the samples are missing; they come from ``records``.
    """
    if not path.exists():
        return
    with path.open(newline="", encoding="utf-8") as handle:
        rows = [row for row in list(csv.reader(handle))[1:] if len(row) > 1]
    by_layer = {_key(record.module): record for record in records.values()}
    flags = flags_of([ModuleLoss.of(record) for record in records.values()])
    lines = []
    for row in rows:
        stock = with_samples(list(STOCK), row)
        stock += [""] * (len(STOCK) - len(stock))
        found = by_layer.get((row[0], row[1].rpartition(".")[2]))
        place = STOCK.index("samples")
        # gptqmodel counts rows for GPTAQ, and tokens for GPTQ.
        if found is not None and (found.outcome == "gptaq" or not stock[place]):
            stock[place] = str(found.tokens)
        lines.append([*stock, *_added(found, flags)])
    _write(path, lines)


def write_records(path: Path, records: Mapping[str, ModuleRecord]) -> None:
    """A log of ``records`` alone, in the same columns, without times: of a run that failed and is not saved."""
    flags = flags_of([ModuleLoss.of(record) for record in records.values()])
    lines = []
    for record in records.values():
        found = ModuleLoss.of(record)
        loss = record.outcome if record.loss is None else f"{record.loss:.10f}"
        layer = "" if found.layer is None else str(found.layer)
        stock = [layer, found.kind, loss, str(record.tokens), f"{record.damp:.5f}", ""]
        lines.append([*stock, *_added(record, flags)])
    path.parent.mkdir(parents=True, exist_ok=True)
    _write(path, lines)


def _write(path: Path, lines: list[list[str]]) -> None:
    # Worker threads log as they finish; sorted, two runs compare line by line.
    lines.sort(key=lambda row: (int(row[0]) if row[0].isdigit() else -1, row[1]))
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow((*STOCK, *ADDED))
    writer.writerows(lines)
    write_text_atomic(path, out.getvalue())


def _added(record: ModuleRecord | None, flags: Mapping[str, Iterable[str]]) -> list[str]:
    if record is None:
        return [""] * len(ADDED)
    values = {
        "relative_error": "" if record.relative_error is None else f"{record.relative_error:.6e}",
        "dead_columns": str(record.dead_columns),
        "outcome": record.outcome,
        "columns": str(record.columns),
        "damp_asked": "" if record.damp_asked is None else f"{record.damp_asked:.5f}",
        "floor": f"{record.floor:.6g}",
        "nonfinite_columns": str(record.nonfinite_columns),
        "reason": record.reason,
        "flags": " ".join(flags[ModuleLoss.of(record).name]),
    }
    return [values[name] for name in ADDED]


def _key(module: str) -> tuple[str, str]:
    """``…layers.7.mlp.up_proj`` → ``("7", "up_proj")``; leaf names are unique within a layer."""
    parts = module.split(".")
    layer = parts[parts.index("layers") + 1] if "layers" in parts else ""
    return layer, parts[-1]
