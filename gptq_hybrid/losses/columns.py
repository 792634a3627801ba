"""Reading ``quant_log.csv``, this project's or gptqmodel's own."""

from __future__ import annotations

import csv
import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from gptq_hybrid.common.errors import HybridError

from ._modules import ModuleLoss, split_name

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
"""This project's, after them. New ones are added at the end."""
# Flags follow from the rest, and are worked out anew.
_KNOWN = tuple(name for name in ADDED if name != "flags")

# gptqmodel's loss where it rounded: "rtn fallback", "fallback(rtn): 0.0012", or, with fallbacks off, this.
_NOT_ACTIVATED = 999999999.0


@dataclass(frozen=True, slots=True)
class LossLog:
    """Modules in the order of the log; ``lacking``: columns of this project that it would say more with."""

    source: str
    modules: tuple[ModuleLoss, ...]
    lacking: tuple[str, ...]


def read_log(path: Path) -> LossLog:
    """Read ``path``, a CSV file or a folder with ``quant_log.csv``.

    gptqmodel 6.0.3 writes six headers over five values, without the samples; both forms are read.

    Raises:
        HybridError: there is no log, or it is not one.
    """
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
            modules.append(_module(dict(zip(header, with_samples(header, row), strict=True))))
        except ValueError as error:
            raise _unreadable(file, f"line {number}: {error}") from error
    return LossLog(str(path), tuple(modules), tuple(name for name in _KNOWN if name not in header))


def with_samples(header: list[str], row: list[str]) -> list[str]:
    """A row of 6.0.3, which leaves the samples out, with a gap where they belong; any other as it is."""
    place = STOCK.index("samples")
    if tuple(header) == STOCK and len(row) == len(STOCK) - 1:
        return [*row[:place], "", *row[place:]]
    return row


def _module(row: Mapping[str, str]) -> ModuleLoss:
    layer = int(row["layer"]) if row["layer"].lstrip("-").isdigit() else None
    inner, kind = split_name(row["module"])
    loss, outcome, reason = _loss(row["loss"], row.get("outcome"), row.get("reason", ""))
    return ModuleLoss(
        layer=inner if inner is not None else layer if layer is None or layer >= 0 else None,
        kind=_printable(kind),
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
    """Loss, outcome and reason; gptqmodel puts words in the column of losses where it gave up."""
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
    """None for what is empty, and for NaN and infinities, which say no more."""
    value = float(text) if text else math.nan
    return value if math.isfinite(value) else None


def _printable(text: str) -> str:
    """A log may come from anywhere: nothing in it moves the cursor."""
    return "".join(c if c.isprintable() else "?" for c in text)


def _int(text: str | None) -> int | None:
    value = _float(text)
    return None if value is None else int(value)


def _unreadable(file: Path, why: str) -> HybridError:
    return HybridError(
        f"{file} is not a log of losses: {why}",
        remedy=f"Give the {LOG_NAME} that gptqmodel or qwen36 quantize wrote beside the weights.",
    )
