"""Losses as tables of at most 110 columns, and as JSON: by kind of module, and the modules worth a look."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from statistics import median
from typing import Any

from rich.console import RenderableType
from rich.table import Table
from rich.text import Text

from gptq_hybrid.common.tables import plain, report_table

from ._flags import FLAGS, find_flags, find_outliers
from ._record import Measure, ModuleRecord, common_measure, measured
from .quant_log import LossLog

SCHEMA = 1
WORST = 8
_GRAVE = ("fallback", "nan", "nonfinite")


def as_json(log: LossLog) -> dict[str, Any]:
    """Return ``schema``, ``measure``, ``lacking`` columns, ``counts`` by flag, and ``modules`` with their flags.

    ``of_median`` of a module that is an outlier: its loss over the median of its kind.
    """
    flags, outliers = find_flags(log.modules), find_outliers(log.modules)
    return {
        "schema": SCHEMA,
        "source": log.source,
        "measure": common_measure(log.modules),
        "lacking": list(log.lacking),
        "counts": count_flags(flags),
        "modules": [
            {
                "layer": record.layer,
                "kind": record.kind,
                "relative_error": record.relative_error,
                "loss": record.loss,
                "tokens": record.tokens,
                "columns": record.columns,
                "damp": record.damp,
                "damp_asked": record.damp_asked,
                "floor": record.floor,
                "dead_columns": record.dead_columns,
                "nonfinite_columns": record.nonfinite_columns,
                "outcome": record.outcome,
                "reason": record.reason,
                "flags": list(flags[record.name]),
                "of_median": outliers.get(record.name),
            }
            for record in log.modules
        ],
    }


def count_flags(flags: Mapping[str, Sequence[str]]) -> dict[str, int]:
    """Count the modules that have each of :data:`FLAGS`."""
    return {flag: sum(flag in of_module for of_module in flags.values()) for flag in FLAGS}


def summary(records: Sequence[ModuleRecord], *, worst: int = WORST) -> RenderableType:
    """Say in one line that all modules are fine, or list the ``worst`` and count them by what is wrong."""
    measure, flags, outliers = common_measure(records), find_flags(records), find_outliers(records)
    flagged = [record for record in records if flags[record.name]]
    if not flagged:
        return _fine(records, measure)
    rank = list(FLAGS)
    flagged.sort(
        key=lambda r: (rank.index(flags[r.name][0]), -(outliers.get(r.name) or measured(r, measure) or 0.0))
    )
    counts = Counter(flag for record in flagged for flag in flags[record.name])
    table = report_table(
        f"{len(flagged)} of {len(records)} modules are worth a look",
        "\n".join(f"{FLAGS[flag]}: {counts[flag]}" for flag in FLAGS if counts[flag])
        + (f"\nnot shown: {len(flagged) - worst}" if len(flagged) > worst else ""),
    )
    table.add_column("module", overflow="fold")
    table.add_column(_title(measure), justify="right", no_wrap=True)
    table.add_column("what", overflow="fold")
    for record in flagged[:worst]:
        style = "red" if set(flags[record.name]) & set(_GRAVE) else "yellow"
        what = "; ".join(_describe(record, flag, outliers) for flag in flags[record.name])
        value = _value_text(measured(record, measure), measure)
        table.add_row(plain(record.name), value, Text(what, style=style))
    return table


def kinds_table(records: Sequence[ModuleRecord]) -> Table:
    """Tabulate each kind of module: how many, median and worst loss, and the layer that has the worst."""
    measure = common_measure(records)
    caption = (
        "squared error of the output over its square, on the calibration data"
        if measure == "relative_error"
        else "gptqmodel's losses: not comparable between kinds, nor with other runs"
    )
    table = report_table(f"{_title(measure).capitalize()} of {len(records)} quantized modules", caption)
    table.add_column("kind", overflow="fold")
    for column in ("modules", "median", "worst", "in layer"):
        table.add_column(column, justify="right")
    for kind in dict.fromkeys(record.kind for record in records):
        group = [record for record in records if record.kind == kind]
        values = _values(group, measure)
        if not values:
            table.add_row(plain(kind), str(len(group)), "", "", "")
            continue
        most, worst = max(values, key=lambda pair: pair[0])
        table.add_row(
            plain(kind),
            str(len(group)),
            _value_text(median(value for value, _ in values), measure),
            _value_text(most, measure),
            "" if worst.layer is None else str(worst.layer),
        )
    return table


def _fine(records: Sequence[ModuleRecord], measure: Measure) -> Text:
    values = _values(records, measure)
    if not values:
        return Text(f"All {len(records)} modules are fine, as far as the log tells.")
    most, worst = max(values, key=lambda pair: pair[0])
    middle = median(value for value, _ in values)
    return Text(
        f"All {len(records)} modules are fine: {_title(measure)} {_value_text(middle, measure)} "
        f"in the median, {_value_text(most, measure)} at most ({worst.name})."
    )


def _values(records: Sequence[ModuleRecord], measure: Measure) -> list[tuple[float, ModuleRecord]]:
    return [(value, record) for record in records if (value := measured(record, measure)) is not None]


def _describe(record: ModuleRecord, flag: str, outliers: Mapping[str, float]) -> str:
    match flag:
        case "fallback":
            return f"rounded: {record.reason or 'reason not logged'}"
        case "nan":
            return record.reason or "NaN loss"
        case "nonfinite":
            return f"{record.nonfinite_columns} inputs not finite"
        case "floor":
            return f"diagonal of the Hessian raised by {record.floor:.2g} of its mean"
        case "damped":
            return f"damping {record.damp_asked:g} → {record.damp:.4g}"
        case "outlier":
            return f"{outliers[record.name]:.1f} × the median of its kind"
        case "starved":
            return f"{record.tokens} tokens for {record.columns} inputs"
        case _:
            share = f" of {record.columns}" if record.columns else ""
            return f"{record.dead_columns}{share} inputs always zero"


def _title(measure: Measure) -> str:
    return "relative error" if measure == "relative_error" else "loss"


def _value_text(value: float | None, measure: Measure) -> str:
    if value is None:
        return "–"
    # Three digits whichever the size: a percentage with fixed decimals hides 1e-5.
    return f"{100 * value:.3g} %" if measure == "relative_error" else f"{value:.3g}"
