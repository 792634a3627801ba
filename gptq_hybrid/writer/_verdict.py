"""Did the quantization work? gptqmodel never fails a run for the modules it gave up on."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from gptq_hybrid.losses import ModuleLoss, flags_of
from gptq_hybrid.upstream import ModuleRecord


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
    """Modules by what went wrong with them; ``failures`` are the sentences that fail the run.

    ``damped``: needed more damping, or a lifted diagonal, to be positive definite. ``outliers``: see
    ``gptq_hybrid.losses``. Neither fails a run.
    """

    modules: int
    fallbacks: tuple[str, ...]
    nans: tuple[str, ...]
    dead: tuple[str, ...]
    starved: tuple[str, ...]
    failures: tuple[str, ...]
    damped: tuple[str, ...] = ()
    outliers: tuple[str, ...] = ()

    @property
    def ok(self) -> bool:
        return not self.failures


def judge(
    records: Iterable[ModuleRecord], limits: Limits | None = None, *, expected: int | None = None
) -> Verdict:
    """Sort the records of a run by outcome and hold them against ``limits``.

    ``expected``: how many modules the whole run has, if ``records`` are those done so far. What fails then
    fails the finished run too: it need not go on.
    """
    limits = limits or Limits()
    found = list(records)
    total = max(len(found), expected or 0)
    losses = [ModuleLoss.of(record) for record in found]
    flags = flags_of(losses)
    flagged = [(record, flags[loss.name]) for record, loss in zip(found, losses, strict=True)]
    fallbacks = [r for r, flag in flagged if "fallback" in flag]
    nans = tuple(r.module for r, flag in flagged if "nan" in flag)
    failures = []
    if fallbacks and len(fallbacks) > limits.fallback_fraction * total:
        failures.append(
            f"{len(fallbacks)} of {total} modules fell back to plain rounding "
            f"(limit {100 * limits.fallback_fraction:g} %): {_first(fallbacks)}"
        )
    if nans:
        failures.append(f"{len(nans)} modules had a NaN loss: {nans[0]}")
    too_dead = [r for r in found if r.dead_columns > limits.dead_fraction * r.columns]
    if too_dead:
        worst = max(too_dead, key=lambda r: r.dead_columns / r.columns)
        failures.append(
            f"{worst.module} saw {worst.dead_columns} of {worst.columns} inputs always zero "
            f"(limit {100 * limits.dead_fraction:g} %); their weights were zeroed"
        )
    return Verdict(
        modules=len(found),
        fallbacks=tuple(r.module for r in fallbacks),
        nans=nans,
        dead=tuple(r.module for r, flag in flagged if "dead" in flag),
        starved=tuple(r.module for r, flag in flagged if "starved" in flag),
        failures=tuple(failures),
        damped=tuple(r.module for r, flag in flagged if "damped" in flag or "floor" in flag),
        outliers=tuple(r.module for r, flag in flagged if "outlier" in flag),
    )


def _first(records: Sequence[ModuleRecord]) -> str:
    """The first three and why each was given up."""
    said = [f"{r.module} ({r.reason})" if r.reason else r.module for r in records[:3]]
    return ", ".join(said) + (", …" if len(records) > 3 else "")
