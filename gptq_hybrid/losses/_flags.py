"""What is worth a look in a module, and the rule for losses that stand out.

A loss is held against the other layers' of the same kind, on a logarithmic scale (losses differ by factors):
it is an outlier if it lies more than ``K`` robust standard deviations (1.4826 times the median absolute
deviation, MAD) above the median, and is at least ``FACTOR`` times the median. Median and MAD rather than mean
and deviation: one layer that went wrong would hide itself in the latter.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from statistics import median

from ._modules import ModuleLoss, measure_of, value_of

# Simulated (bench/losses) with normal log losses, 20,000 times, for the kinds of a 27B (4 of 16 layers, 3 of 48,
# 3 of 64): false alarms a run are 0.57 at 3.5, the usual choice, 0.24 at 4, 0.05 at 5. The MAD of 16 values is
# uncertain.
K = 5.0
# Where layers are nearly alike, MAD is next to nothing and 5 of it are too.
FACTOR = 2.0
# With fewer, MAD says little: at 4 layers every 20th kind would have a false alarm, and one of 4 may be right.
LEAST_LAYERS = 8

# Fewer calibration tokens than this share of a module's inputs leave its Hessian
# rank-deficient: damping alone then decides most directions.
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


def outliers(modules: Sequence[ModuleLoss]) -> dict[str, float]:
    """Modules whose loss stands out, by name: how many times the median of their kind it is."""
    measure = measure_of(modules)
    by_kind: dict[str, list[tuple[str, float]]] = {}
    for module in modules:
        value = value_of(module, measure)
        if module.layer is not None and value is not None and value > 0 and math.isfinite(value):
            by_kind.setdefault(module.kind, []).append((module.name, math.log(value)))
    found: dict[str, float] = {}
    for group in by_kind.values():
        if len(group) < LEAST_LAYERS:
            continue
        middle = median(value for _, value in group)
        spread = 1.4826 * median(abs(value - middle) for _, value in group)
        bound = middle + max(K * spread, math.log(FACTOR))
        found |= {name: math.exp(value - middle) for name, value in group if value > bound}
    return found


def flags_of(modules: Sequence[ModuleLoss]) -> dict[str, tuple[str, ...]]:
    """Names of :data:`FLAGS` by module name, in their order; empty for a module that is fine."""
    apart = outliers(modules)
    return {module.name: tuple(flag for flag in FLAGS if _has(module, flag, apart)) for module in modules}


def _has(module: ModuleLoss, flag: str, apart: dict[str, float]) -> bool:
    match flag:
        case "fallback" | "nan":
            return module.outcome == flag
        case "nonfinite":
            return bool(module.nonfinite_columns)
        case "floor":
            return bool(module.floor) and module.outcome != "fallback"
        case "damped":
            if module.damp is None or module.damp_asked is None or module.outcome == "fallback":
                return False
            return module.damp > module.damp_asked + _DAMP_DIGIT
        case "outlier":
            return module.name in apart
        case "starved":
            if module.tokens is None or module.columns is None:
                return False
            return module.tokens < STARVED_BELOW * module.columns
        case "dead":
            return bool(module.dead_columns)
        case _:
            raise ValueError(flag)
