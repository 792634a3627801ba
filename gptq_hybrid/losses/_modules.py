"""One quantized module as a log or a run tells of it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    from gptq_hybrid.upstream import ModuleRecord

Measure = Literal["relative_error", "loss"]


@dataclass(frozen=True, slots=True)
class ModuleLoss:
    """A row of ``quant_log.csv``; None where the log does not say.

    Args:
        layer: None outside the decoder layers.
        kind: the name within a layer, such as ``mlp.up_proj``.
        loss: gptqmodel's, which scales with 1/tokens and with the inputs: comparable within a kind at most.
        tokens: calibration tokens seen.
        columns: inputs of the module.

    The others are as in :class:`~gptq_hybrid.upstream.ModuleRecord`.
    """

    layer: int | None
    kind: str
    relative_error: float | None = None
    loss: float | None = None
    tokens: int | None = None
    columns: int | None = None
    damp: float | None = None
    damp_asked: float | None = None
    floor: float | None = None
    dead_columns: int | None = None
    nonfinite_columns: int | None = None
    outcome: str | None = None
    reason: str = ""

    @property
    def name(self) -> str:
        return self.kind if self.layer is None else f"{self.layer}.{self.kind}"

    @classmethod
    def of(cls, record: ModuleRecord) -> ModuleLoss:
        """The same of a finished module."""
        layer, kind = split_name(record.module)
        return cls(
            layer=layer,
            kind=kind,
            relative_error=record.relative_error,
            loss=record.loss,
            tokens=record.tokens,
            columns=record.columns,
            damp=record.damp,
            damp_asked=record.damp_asked,
            floor=record.floor,
            dead_columns=record.dead_columns,
            nonfinite_columns=record.nonfinite_columns,
            outcome=record.outcome,
            reason=record.reason,
        )


def split_name(module: str) -> tuple[int | None, str]:
    """``…layers.7.mlp.up_proj`` → ``(7, "mlp.up_proj")``; a name outside the decoder layers as it is."""
    before, found, after = module.rpartition("layers.")
    number, _, kind = after.partition(".")
    if (
        not found
        or not number.isdigit()
        or (before and not before.endswith("."))
        or before.startswith("mtp.")
    ):
        return None, module
    return int(number), kind


def measure_of(modules: Sequence[ModuleLoss]) -> Measure:
    """``relative_error`` if any module has one."""
    return "relative_error" if any(m.relative_error is not None for m in modules) else "loss"


def value_of(module: ModuleLoss, measure: Measure) -> float | None:
    """The figure that modules of a kind are compared by."""
    return module.relative_error if measure == "relative_error" else module.loss
