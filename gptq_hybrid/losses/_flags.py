"""Flag the modules that are worth a look, among them those whose loss stands out.

A loss is compared with those of the same kind in other layers, on a logarithmic scale, as losses differ by
factors. It is an outlier if it lies more than ``K`` robust standard deviations (1.4826 times the median
absolute deviation, MAD) above the median, and is at least ``FACTOR`` times the median. Median and MAD are used
instead of mean and standard deviation because one layer that went wrong would hide itself in the latter.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from statistics import median

from ._record import ModuleRecord, common_measure, measured

# Simulated (bench/losses) with normal log losses, 20,000 times, for the kinds of a 27B (4 of 16 layers, 3 of 48,
# 3 of 64): false alarms a run are 0.57 at 3.5, the usual choice, 0.24 at 4, 0.05 at 5. The MAD of 16 values is
# uncertain.
K = 5.0
# Where layers are nearly alike, MAD is next to nothing and 5 of it are too.
FACTOR = 2.0
# With fewer, MAD says little: at 4 layers every 20th kind would have a false alarm, and one of 4 may be right.
LEAST_LAYERS = 8

# Fewer calibration tokens than this share of a module's inputs leave its Hessian rank-deficient: damping alone then
# decides most directions.
STARVED_BELOW = 1.0

# gptqmodel logs dampings with five decimals.
_DAMP_DIGIT = 1e-5

FLAGS = {
    "fallback": "fell back to plain rounding",
    "nan": "NaN loss",
    "nonfinite": "NaN or infinite inputs",
    "floor": "needed a raised diagonal to be positive definite",
    "damped": "needed more damping than asked for to be positive definite",
    "outlier": "loss far above that of other layers",
    "starved": "fewer calibration tokens than inputs",
    "dead": "inputs that were always zero",
}
"""Name of each flag, the gravest first, and what it says of a module."""


def find_outliers(records: Sequence[ModuleRecord]) -> dict[str, float]:
    """Return the modules whose loss stands out, by name, with how many times the median of their kind it is."""
    measure = common_measure(records)
    by_kind: dict[str, list[tuple[str, float]]] = {}
    for record in records:
        value = measured(record, measure)
        if record.layer is not None and value is not None and value > 0 and math.isfinite(value):
            by_kind.setdefault(record.kind, []).append((record.name, math.log(value)))
    outliers: dict[str, float] = {}
    for group in by_kind.values():
        if len(group) < LEAST_LAYERS:
            continue
        middle = median(value for _, value in group)
        spread = 1.4826 * median(abs(value - middle) for _, value in group)
        bound = middle + max(K * spread, math.log(FACTOR))
        outliers |= {name: math.exp(value - middle) for name, value in group if value > bound}
    return outliers


def find_flags(records: Sequence[ModuleRecord]) -> dict[str, tuple[str, ...]]:
    """Return names of :data:`FLAGS`, in their order, by module name; empty for a module that is fine."""
    outliers = find_outliers(records)
    return {record.name: tuple(flag for flag in FLAGS if _has(record, flag, outliers)) for record in records}


def _has(record: ModuleRecord, flag: str, outliers: dict[str, float]) -> bool:
    match flag:
        case "fallback" | "nan":
            return record.outcome == flag
        case "nonfinite":
            return bool(record.nonfinite_columns)
        case "floor":
            return bool(record.floor) and record.outcome != "fallback"
        case "damped":
            if record.damp is None or record.damp_asked is None or record.outcome == "fallback":
                return False
            return record.damp > record.damp_asked + _DAMP_DIGIT
        case "outlier":
            return record.name in outliers
        case "starved":
            if record.tokens is None or record.columns is None:
                return False
            return record.tokens < STARVED_BELOW * record.columns
        case "dead":
            return bool(record.dead_columns)
        case _:
            raise ValueError(flag)
