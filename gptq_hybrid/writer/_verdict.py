"""Did the quantization work? gptqmodel never fails a run for the modules it gave up on."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from gptq_hybrid.compat import ModuleRecord

# Fewer calibration tokens than this share of a module's inputs leave its Hessian
# rank-deficient: damping alone then decides most directions.
STARVED_BELOW = 1.0


@dataclass(frozen=True, slots=True)
class Limits:
    """Past these a run counts as failed.

    ``fallback_fraction``: share of modules quantized by plain rounding.
    ``dead_fraction``: share of zero inputs in any one module. NaN losses fail always.
    """

    fallback_fraction: float = 0.01
    dead_fraction: float = 0.05


@dataclass(frozen=True, slots=True)
class Verdict:
    """Modules by what went wrong with them; ``failures`` are the sentences that fail the run."""

    modules: int
    fallbacks: tuple[str, ...]
    nans: tuple[str, ...]
    dead: tuple[str, ...]
    starved: tuple[str, ...]
    failures: tuple[str, ...]

    @property
    def ok(self) -> bool:
        return not self.failures


def judge(records: Iterable[ModuleRecord], limits: Limits | None = None) -> Verdict:
    """Sort the records of a run by outcome and hold them against ``limits``."""
    limits = limits or Limits()
    found = list(records)
    fallbacks = tuple(r.module for r in found if r.outcome == "fallback")
    nans = tuple(r.module for r in found if r.outcome == "nan")
    dead = tuple(r.module for r in found if r.dead_columns)
    starved = tuple(r.module for r in found if r.tokens < STARVED_BELOW * r.columns)
    failures = []
    if fallbacks and len(fallbacks) > limits.fallback_fraction * len(found):
        failures.append(
            f"{len(fallbacks)} of {len(found)} modules fell back to plain rounding "
            f"(limit {limits.fallback_fraction:.0%}): {fallbacks[0]}"
        )
    if nans:
        failures.append(f"{len(nans)} modules had a NaN loss: {nans[0]}")
    too_dead = [r for r in found if r.dead_columns > limits.dead_fraction * r.columns]
    if too_dead:
        worst = max(too_dead, key=lambda r: r.dead_columns / r.columns)
        failures.append(
            f"{worst.module} saw {worst.dead_columns} of {worst.columns} inputs always zero "
            f"(limit {limits.dead_fraction:.0%}); their weights were zeroed"
        )
    return Verdict(len(found), fallbacks, nans, dead, starved, tuple(failures))
