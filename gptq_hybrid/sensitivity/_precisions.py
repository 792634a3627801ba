"""The precisions a module is tried in: its rounded weights, or those of a quantized checkpoint."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

import torch

from gptq_hybrid.checkpoint import LinearSpec
from gptq_hybrid.checkpoint.formats.gptq import settings
from gptq_hybrid.common.errors import HybridError
from gptq_hybrid.evaluate.states import state_key
from gptq_hybrid.packing import quantize_rtn
from gptq_hybrid.recipes.sizes import packed_bytes
from gptq_hybrid.streaming import CheckpointWeights

from ._units import Unit

STORED = "stored"


class Precision(Protocol):
    """One way of storing modules. ``key`` names it in files, ``label`` in results and to people."""

    @property
    def key(self) -> str: ...

    @property
    def label(self) -> str: ...

    def covers(self, unit: Unit) -> bool:
        """Whether ``unit`` is stored otherwise than in the original."""

    def bits(self, unit: Unit) -> int: ...

    def stored_bytes(self, unit: Unit) -> int:
        """Return the size of ``unit`` in a file."""

    def weight(self, linear: LinearSpec, dense: torch.Tensor) -> torch.Tensor:
        """Return the replacement for ``dense`` ``[out_features, in_features]``: float32, same shape and device."""


class Rounded:
    """Rounding to nearest with searched scales, as the writer packs the two heads."""

    def __init__(self, bits: int, group_size: int) -> None:
        self._bits = bits
        self.group_size = group_size

    @property
    def key(self) -> str:
        return f"rtn{self._bits}-g{self.group_size}"

    @property
    def label(self) -> str:
        return f"rtn{self._bits}"

    def covers(self, unit: Unit) -> bool:
        return True

    def bits(self, unit: Unit) -> int:
        return self._bits

    def stored_bytes(self, unit: Unit) -> int:
        return sum(packed_bytes(linear, self._bits, self.group_size) for linear in unit.linears)

    def weight(self, linear: LinearSpec, dense: torch.Tensor) -> torch.Tensor:
        # vLLM casts scales to the dtype it serves in.
        codes, scales = quantize_rtn(dense, self._bits, self.group_size, scale_dtype=torch.bfloat16)
        groups = scales.shape[1]
        steps = codes.to(torch.float32).sub_(1 << (self._bits - 1)).view(dense.shape[0], groups, -1)
        return steps.mul_(scales.to(torch.float32).unsqueeze(-1)).view(dense.shape)

    def refuse_impossible(self, units: Sequence[Unit]) -> None:
        """Make sure that groups divide the inputs of every module.

        Raises:
            HybridError: they do not; the message names the first such module.
        """
        for linear in (linear for unit in units for linear in unit.linears):
            if self.group_size < 1 or linear.in_features % self.group_size:
                raise HybridError(
                    f"groups of {self.group_size} do not divide the {linear.in_features} inputs of {linear.name}",
                    remedy="Give another --group-size, such as 128.",
                )


class Stored:
    """The unpacked weights of a quantized checkpoint of the same model; it does not cover what is dense there."""

    def __init__(self, weights: CheckpointWeights, original_prefix: str) -> None:
        self.weights = weights
        self._original_prefix = original_prefix
        self.key = f"stored-{state_key(weights.checkpoint, {})[:24]}"
        self.label = STORED

    def covers(self, unit: Unit) -> bool:
        packed = [
            f"{self._name(linear)}.qweight" in self.weights.checkpoint.loaded for linear in unit.linears
        ]
        # vLLM loads no module half packed. Only the MTP head as a whole can have packed and dense linears.
        return any(packed)

    def bits(self, unit: Unit) -> int:
        config = self.weights.checkpoint.quantization_config or {}
        return settings(config, self._name(unit.linears[0]))[0]

    def stored_bytes(self, unit: Unit) -> int:
        loaded = self.weights.checkpoint.loaded
        names = [self._name(linear) for linear in unit.linears]
        parts = ("weight", "qweight", "scales", "qzeros", "g_idx")
        return sum(loaded[f"{n}.{p}"].nbytes for n in names for p in parts if f"{n}.{p}" in loaded)

    def weight(self, linear: LinearSpec, dense: torch.Tensor) -> torch.Tensor:
        weight = self.weights.under(f"{self._name(linear)}.")["weight"]
        return weight.to(device=dense.device, dtype=torch.float32)

    def _name(self, linear: LinearSpec) -> str:
        """Return the linear's name in this checkpoint; a text-only one has another prefix for the same layers."""
        if not linear.name.startswith(self._original_prefix):
            return linear.name
        return self.weights.layout.layers_prefix + linear.name.removeprefix(self._original_prefix)
