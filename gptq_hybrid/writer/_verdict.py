"""Judge whether a quantization worked: gptqmodel never fails a run for the modules it gave up on."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from gptq_hybrid.common.errors import HybridError
from gptq_hybrid.losses import ModuleRecord, find_flags


class QuantizationFailedError(HybridError):
    """Too many modules failed; no checkpoint was written."""


@dataclass(frozen=True, slots=True)
class Limits:
    """Bounds past which a run counts as failed. NaN losses fail always.

    Attributes:
        fallback_fraction: share of modules quantized by plain rounding.
        dead_fraction: share of zero inputs in any one module.
    """

    fallback_fraction: float = 0.01
    dead_fraction: float = 0.05


@dataclass(frozen=True, slots=True)
class Verdict:
    """Modules by what went wrong with them.

    Attributes:
        modules: how many there are.
        fallbacks: quantized by plain rounding.
        nans: had a NaN loss.
        dead: had inputs that were always zero.
        starved: saw fewer calibration tokens than they have inputs.
        failures: the sentences that fail the run.
        damped: needed more damping, or a lifted diagonal, to be positive definite. Fails no run.
        outliers: see ``gptq_hybrid.losses``. Fail no run.
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
        """Whether nothing fails the run."""
        return not self.failures


def judge(
    records: Iterable[ModuleRecord], limits: Limits | None = None, *, expected: int | None = None
) -> Verdict:
    """Sort the records of a run by outcome and compare them with ``limits``.

    Args:
        records: of the modules done so far.
        limits: the default ones if None.
        expected: how many modules the whole run has, if ``records`` are only some of them. What fails then
            fails the finished run too: it need not go on.
    """
    limits = limits or Limits()
    records = list(records)
    total = max(len(records), expected or 0)
    flags = find_flags(records)

    def flagged(*names: str) -> list[ModuleRecord]:
        return [record for record in records if set(names) & set(flags[record.name])]

    fallbacks, nans = flagged("fallback"), flagged("nan")
    failures = []
    if fallbacks and len(fallbacks) > limits.fallback_fraction * total:
        failures.append(
            f"{len(fallbacks)} of {total} modules fell back to plain rounding "
            f"(limit {100 * limits.fallback_fraction:g} %): {_first(fallbacks)}"
        )
    if nans:
        failures.append(f"{len(nans)} modules had a NaN loss: {nans[0].module}")
    worst = max(records, key=_dead_share, default=None)
    if worst is not None and _dead_share(worst) > limits.dead_fraction:
        failures.append(
            f"{worst.module} saw {worst.dead_columns} of {worst.columns} inputs always zero "
            f"(limit {100 * limits.dead_fraction:g} %); their weights were zeroed"
        )
    return Verdict(
        modules=len(records),
        fallbacks=_names(fallbacks),
        nans=_names(nans),
        dead=_names(flagged("dead")),
        starved=_names(flagged("starved")),
        failures=tuple(failures),
        damped=_names(flagged("damped", "floor")),
        outliers=_names(flagged("outlier")),
    )


def _dead_share(record: ModuleRecord) -> float:
    return (record.dead_columns or 0) / record.columns if record.columns else 0.0


def _names(records: Iterable[ModuleRecord]) -> tuple[str, ...]:
    return tuple(record.module for record in records)


def _first(records: Sequence[ModuleRecord]) -> str:
    """Name the first three, and why each was given up."""
    named = [
        f"{record.module} ({record.reason})" if record.reason else record.module for record in records[:3]
    ]
    return ", ".join(named) + (", …" if len(records) > 3 else "")
