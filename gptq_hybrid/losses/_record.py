"""What quantizing one module came to: noted while gptqmodel runs, or read back from a log."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

Measure = Literal["relative_error", "loss"]

_IN_LAYER = re.compile(r"(?:^|\.)layers\.(\d+)\.(.+)", re.DOTALL)


@dataclass(frozen=True, slots=True)
class ModuleRecord:
    """One quantized module; a figure is None where a log does not have it.

    The three dampings are shares of mean(diag H).

    Attributes:
        module: full name; from a log ``layers.7.mlp.up_proj``, as logs do not have the rest.
        columns: inputs of the module.
        tokens: calibration tokens that it saw.
        loss: gptqmodel's, which scales with 1/tokens and with the inputs; comparable within a kind at most.
        damp: damping that the solver ended with.
        relative_error: tr(ΔW H ΔWᵀ) / tr(W H Wᵀ), the squared error of the module's output over its squared output,
            on the calibration data. None where the solver fell back and measured nothing.
        dead_columns: inputs that were zero throughout. GPTQ zeroes their weights.
        outcome: ``"gptq"``, ``"gptaq"`` (its ``loss`` is not comparable, its ``relative_error`` is), ``"fallback"``
            (rounded to nearest) or ``"nan"`` (NaN loss, retried without a Hessian).
        reason: why it is one of the last two.
        damp_asked: damping in the settings. More was needed where the Hessian was not positive definite.
        floor: added to the diagonal where no damping sufficed.
        nonfinite_columns: inputs that were ever NaN or infinite.
    """

    module: str
    columns: int | None = None
    tokens: int | None = None
    loss: float | None = None
    damp: float | None = None
    relative_error: float | None = None
    dead_columns: int | None = None
    outcome: str | None = None
    reason: str = ""
    damp_asked: float | None = None
    floor: float | None = None
    nonfinite_columns: int | None = None

    @property
    def layer(self) -> int | None:
        """Number of its decoder layer; None outside of them."""
        return split_name(self.module)[0]

    @property
    def kind(self) -> str:
        """Its name within the layer, such as ``mlp.up_proj``."""
        return split_name(self.module)[1]

    @property
    def name(self) -> str:
        """Layer and kind, such as ``7.mlp.up_proj``."""
        layer, kind = split_name(self.module)
        return kind if layer is None else f"{layer}.{kind}"


def split_name(module: str) -> tuple[int | None, str]:
    """``…layers.7.mlp.up_proj`` → ``(7, "mlp.up_proj")``; a name outside the decoder layers stays whole."""
    match = None if module.startswith("mtp.") else _IN_LAYER.search(module)
    return (None, module) if match is None else (int(match[1]), match[2])


def common_measure(records: Sequence[ModuleRecord]) -> Measure:
    """Choose the figure to compare by: ``relative_error`` if any module has one."""
    return "relative_error" if any(r.relative_error is not None for r in records) else "loss"


def measured(record: ModuleRecord, measure: Measure) -> float | None:
    """The record's value of ``measure``."""
    return record.relative_error if measure == "relative_error" else record.loss
