"""``quant_log.csv``: read it, this project's or gptqmodel's own, and write this project's columns into it."""

from __future__ import annotations

import csv
import io
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from gptq_hybrid.common.atomic import write_text_atomic
from gptq_hybrid.common.errors import HybridError

from ._flags import find_flags
from ._record import ModuleRecord, split_name

LOG_NAME = "quant_log.csv"

STOCK = ("layer", "module", "loss", "samples", "damp", "time")
"""gptqmodel's columns."""
ADDED = (
    "relative_error",
    "dead_columns",
    "outcome",
    "columns",
    "damp_asked",
    "floor",
    "nonfinite_columns",
    "reason",
    "flags",
)
"""This project's columns, after gptqmodel's. New ones are added at the end."""

# Flags follow from the other columns, and are computed anew when a log is read.
_READ = tuple(name for name in ADDED if name != "flags")
# gptqmodel's loss of a module that it did not quantize, where fallbacks are off; else it writes "rtn fallback" or
# "fallback(rtn): 0.0012".
_NOT_ACTIVATED = 999999999.0


@dataclass(frozen=True, slots=True)
class LossLog:
    """A log that was read.

    Attributes:
        source: the path that was given.
        modules: in the order of the log.
        lacking: columns of this project that the log does not have.
    """

    source: str
    modules: tuple[ModuleRecord, ...]
    lacking: tuple[str, ...]


def read_log(path: str | Path) -> LossLog:
    """Read ``path``, a CSV file or a folder with ``quant_log.csv``.

    gptqmodel 6.0.3 writes six headers over five values, without the samples; both forms are read.

    Raises:
        HybridError: there is no log, or it is not one.
    """
    path = Path(path)
    file = path / LOG_NAME if path.is_dir() else path
    if not file.is_file():
        raise HybridError(
            f"{path} has no {LOG_NAME}" if path.is_dir() else f"{path} is neither a folder nor a log",
            remedy="Give a checkpoint folder that gptqmodel or qwen36 quantize wrote, or its log. The log stays "
            "with the first copy of a checkpoint; not every upload has it.",
        )
    try:
        with file.open(newline="", encoding="utf-8") as handle:
            rows = [row for row in csv.reader(handle) if row]
    except (UnicodeDecodeError, csv.Error) as error:
        raise _unreadable(file, str(error)) from error
    header = rows[0] if rows else []
    if not {"layer", "module", "loss"} <= set(header):
        raise _unreadable(file, "its first line does not name the columns layer, module and loss")
    if len(rows) == 1:
        raise _unreadable(file, "it has no modules")
    modules = []
    for number, row in enumerate(rows[1:], 2):
        try:
            modules.append(_record(dict(zip(header, _with_samples(header, row), strict=True))))
        except ValueError as error:
            raise _unreadable(file, f"line {number}: {error}") from error
    return LossLog(str(path), tuple(modules), tuple(name for name in _READ if name not in header))


def extend_log(path: str | Path, records: Sequence[ModuleRecord]) -> None:
    """Add this project's columns to the log that gptqmodel wrote; nothing happens where there is none.

    6.0.3 writes six headers over five values, of which the samples are missing; they come from ``records``.
    """
    path = Path(path)
    if not path.exists():
        return
    with path.open(newline="", encoding="utf-8") as handle:
        rows = [row for row in list(csv.reader(handle))[1:] if len(row) > 1]
    by_place = {_layer_and_leaf(record): record for record in records}
    flags = find_flags(records)
    samples = STOCK.index("samples")
    lines = []
    for row in rows:
        stock = _with_samples(list(STOCK), row)
        stock += [""] * (len(STOCK) - len(stock))
        record = by_place.get((row[0], row[1].rpartition(".")[2]))
        # gptqmodel counts rows for GPTAQ, and tokens for GPTQ.
        if record is not None and (record.outcome == "gptaq" or not stock[samples]):
            stock[samples] = str(record.tokens)
        lines.append([*stock, *_added(record, flags)])
    _write(path, lines)


def write_log(path: str | Path, records: Sequence[ModuleRecord]) -> None:
    """Write a log of ``records`` alone, without times: for a run that failed and is not saved."""
    path = Path(path)
    flags = find_flags(records)
    lines = []
    for record in records:
        layer = "" if record.layer is None else str(record.layer)
        loss = str(record.outcome) if record.loss is None else f"{record.loss:.10f}"
        damp = _text(record.damp, ".5f")
        lines.append([layer, record.kind, loss, _text(record.tokens, "d"), damp, "", *_added(record, flags)])
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


def _added(record: ModuleRecord | None, flags: Mapping[str, Sequence[str]]) -> list[str]:
    if record is None:
        return [""] * len(ADDED)
    values = {
        "relative_error": _text(record.relative_error, ".6e"),
        "dead_columns": _text(record.dead_columns, "d"),
        "outcome": record.outcome or "",
        "columns": _text(record.columns, "d"),
        "damp_asked": _text(record.damp_asked, ".5f"),
        "floor": _text(record.floor, ".6g"),
        "nonfinite_columns": _text(record.nonfinite_columns, "d"),
        "reason": record.reason,
        "flags": " ".join(flags[record.name]),
    }
    return [values[name] for name in ADDED]


def _text(value: float | None, form: str) -> str:
    return "" if value is None else format(value, form)


def _layer_and_leaf(record: ModuleRecord) -> tuple[str, str]:
    """``…layers.7.mlp.up_proj`` → ``("7", "up_proj")``; last parts of names are unique within a layer."""
    return "" if record.layer is None else str(record.layer), record.kind.rpartition(".")[2]


def _with_samples(header: list[str], row: list[str]) -> list[str]:
    """Leave a gap for the samples in a row of 6.0.3, which has none; return any other row as it is."""
    place = STOCK.index("samples")
    if tuple(header) == STOCK and len(row) == len(STOCK) - 1:
        return [*row[:place], "", *row[place:]]
    return row


def _record(row: Mapping[str, str]) -> ModuleRecord:
    number = row["layer"]
    layer = int(number) if number.lstrip("-").isdigit() and int(number) >= 0 else None
    in_name, kind = split_name(row["module"])
    layer = layer if in_name is None else in_name
    kind = _printable(kind)
    loss, outcome, reason = _loss(row["loss"], row.get("outcome"), row.get("reason", ""))
    return ModuleRecord(
        module=kind if layer is None else f"layers.{layer}.{kind}",
        relative_error=_float(row.get("relative_error")),
        loss=loss,
        tokens=_int(row.get("samples")),
        columns=_int(row.get("columns")),
        damp=_float(row.get("damp")),
        damp_asked=_float(row.get("damp_asked")),
        floor=_float(row.get("floor")),
        dead_columns=_int(row.get("dead_columns")),
        nonfinite_columns=_int(row.get("nonfinite_columns")),
        outcome=outcome,
        reason=_printable(reason),
    )


def _loss(text: str, outcome: str | None, reason: str) -> tuple[float | None, str | None, str]:
    """Loss, outcome and reason. gptqmodel writes words into the column of losses where it gave up."""
    try:
        loss = float(text)
    except ValueError:
        if "fallback" in text:
            return None, outcome or "fallback", reason or text
        return None, outcome or None, reason
    if not math.isfinite(loss):
        return None, outcome or "nan", reason or "NaN loss"
    if loss == _NOT_ACTIVATED:
        return None, outcome or "fallback", reason or "not activated"
    # The loss of a retry without a Hessian is of another kind.
    return (None if outcome in ("nan", "fallback") else loss), outcome or None, reason


def _float(text: str | None) -> float | None:
    """Parse a float; empty, NaN and infinite become None."""
    value = float(text) if text else math.nan
    return value if math.isfinite(value) else None


def _int(text: str | None) -> int | None:
    value = _float(text)
    return None if value is None else int(value)


def _printable(text: str) -> str:
    """Replace control characters: a log may come from anywhere, and nothing in it may move the cursor."""
    return "".join(c if c.isprintable() else "?" for c in text)


def _unreadable(file: Path, why: str) -> HybridError:
    return HybridError(
        f"{file} is not a log of losses: {why}",
        remedy=f"Give the {LOG_NAME} that gptqmodel or qwen36 quantize wrote beside the weights.",
    )
