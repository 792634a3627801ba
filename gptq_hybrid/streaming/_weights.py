"""Dense tensors of a checkpoint, whatever format it stores them in."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import cached_property
from pathlib import Path
from typing import Any, Protocol

import torch
from safetensors import safe_open

from gptq_hybrid.checkpoint import Checkpoint, TensorLayout, layout_for
from gptq_hybrid.checkpoint.quantization import GPTQ_METHODS, dynamic_rule, quant_method
from gptq_hybrid.common.errors import CheckpointError
from gptq_hybrid.packing import CheckpointFormat, dequantize

_PARTS = ("qweight", "scales", "qzeros", "g_idx")
_FORMATS: dict[str, CheckpointFormat] = {"gptq": "gptq", "gptq_v2": "gptq_v2"}
# Output channels unpacked at once. Unpacking takes four float32 arrays of this many channels: 1.3 GB at 5,120
# inputs, where the whole output head of the 27B would take 20 GB. A multiple of 32 ends in a whole word of qzeros
# at any bits.
_CHANNELS = 16_384


class Weights(Protocol):
    """Where a forward pass takes its tensors from."""

    @property
    def config(self) -> Mapping[str, Any]:
        """The parsed ``config.json``."""

    @property
    def layout(self) -> TensorLayout: ...

    def under(self, prefix: str) -> dict[str, torch.Tensor]:
        """Read the tensors whose names start with ``prefix``; keys are the rest of each name.

        Quantized linears come as ``….weight``, float32 ``[out_features, in_features]``; all else as stored.
        """


class CheckpointWeights:
    """The tensors of a checkpoint folder, with GPTQ linears unpacked (2, 3, 4 or 8 bits, any ``g_idx``).

    Raises:
        CheckpointError: not a readable checkpoint of a known family, or stored in another quantization format.
    """

    def __init__(self, folder: str | Path) -> None:
        self.checkpoint = Checkpoint.open(folder)
        self.layout = layout_for(self.checkpoint.config)
        quantization = self.checkpoint.quantization_config
        if quantization is not None and quant_method(quantization) not in GPTQ_METHODS:
            raise CheckpointError(
                folder,
                f"is quantized by {quant_method(quantization)!r}; "
                "only BF16 originals and GPTQ checkpoints can be run",
                remedy="Give the BF16 original or a GPTQ checkpoint of it.",
            )
        self._quantization: Mapping[str, Any] = quantization or {}
        packing = str(self._quantization.get("checkpoint_format", self._quantization.get("format", "gptq")))
        if packing not in _FORMATS:
            raise CheckpointError(
                folder,
                f"is packed in the format {packing!r}; only {' and '.join(_FORMATS)} can be run",
                remedy="Give the BF16 original, or the checkpoint in the format gptq.",
            )
        self._format = _FORMATS[packing]
        self._names = sorted(self.checkpoint.loaded)
        if errors := self.checkpoint.header_errors:
            raise next(iter(errors.values()))
        if missing := self.checkpoint.missing_files:
            raise CheckpointError(f"{folder}/{missing[0]}", "is named in the index but does not exist")

    @property
    def config(self) -> Mapping[str, Any]:
        return self.checkpoint.config

    @cached_property
    def has_mtp(self) -> bool:
        """Whether the MTP head is stored with every one of its tensors, dense or packed.

        Raises:
            CheckpointError: only some of its tensors are there.
        """
        missing = [
            spec.name
            for spec in self.layout.mtp
            if spec.name not in self.checkpoint.loaded
            and spec.name.removesuffix("weight") + "qweight" not in self.checkpoint.loaded
        ]
        if missing and len(missing) < len(self.layout.mtp):
            raise CheckpointError(
                self.checkpoint.location,
                f"lacks {len(missing)} of {len(self.layout.mtp)} tensors of the MTP head: {missing[0]}",
                remedy="Run: qwen36 repair CHECKPOINT --mtp-from ORIGINAL; or leave the head out with --drafts 0.",
            )
        return not missing and bool(self.layout.mtp)

    def under(self, prefix: str) -> dict[str, torch.Tensor]:
        """See :meth:`Weights.under`.

        Raises:
            CheckpointError: no tensor starts with ``prefix``, or a packed linear lacks one of its parts.
        """
        names = [name for name in self._names if name.startswith(prefix)]
        if not names:
            raise CheckpointError(self.checkpoint.location, f"holds no tensor under {prefix}")
        packed = {name.removesuffix(".qweight") for name in names if name.endswith(".qweight")}
        tensors = {
            name.removeprefix(prefix): self.read(name)
            for name in names
            # A bias is passed on, not dropped: the architecture has none, so filling the module fails loudly.
            if name.rpartition(".")[0] not in packed or name.rpartition(".")[2] not in (*_PARTS, "weight")
        }
        for module in sorted(packed):
            tensors[f"{module}.weight".removeprefix(prefix)] = self._unpack(module)
        return tensors

    def _unpack(self, module: str) -> torch.Tensor:
        names = {part: f"{module}.{part}" for part in _PARTS}
        missing = [part for part, name in names.items() if name not in self.checkpoint.loaded]
        # Without act order g_idx carries no information, and vLLM does not read it.
        if missing and (missing != ["g_idx"] or self._quantization.get("desc_act")):
            raise CheckpointError(
                self.checkpoint.location, f"has no {names[missing[0]]}", remedy="Run: qwen36 check CHECKPOINT"
            )
        rule = dynamic_rule(self._quantization, module)
        overrides = rule if isinstance(rule, Mapping) else {}
        bits = int(overrides.get("bits", self._quantization.get("bits", 4)))
        parts = {part: self.read(name) for part, name in names.items() if part not in missing}
        try:
            return self._dequantize(parts, bits)
        except (ValueError, RuntimeError) as error:
            raise CheckpointError(
                self.checkpoint.location,
                f"{module} is not packed in {bits} bits, as the config says: {error}",
                remedy="Run: qwen36 check CHECKPOINT",
            ) from error

    def _dequantize(self, parts: Mapping[str, torch.Tensor], bits: int) -> torch.Tensor:
        """Unpack to float32 ``[out_features, in_features]``, some output channels at a time."""
        qweight, scales, qzeros = parts["qweight"], parts["scales"], parts["qzeros"]
        weight: torch.Tensor | None = None
        for start in range(0, qweight.shape[1], _CHANNELS):
            end = min(start + _CHANNELS, qweight.shape[1])
            channels = dequantize(
                qweight[:, start:end],
                scales[:, start:end],
                qzeros[:, start * bits // 32 : -(-end * bits // 32)],
                parts.get("g_idx"),
                bits,
                checkpoint_format=self._format,
            )
            if weight is None:
                if end == qweight.shape[1]:
                    return channels
                weight = channels.new_empty(qweight.shape[1], channels.shape[1])
            weight[start:end] = channels
        if weight is None:
            raise ValueError("qweight has no output channels")
        return weight

    def read(self, name: str) -> torch.Tensor:
        """Read one tensor as it is stored, by its full name; of a packed linear one part, such as ``….qweight``."""
        file = self.checkpoint.path / self.checkpoint.loaded[name].file
        # Opened for each tensor, so that the mapping of a 15 GB shard is not kept and threads share nothing.
        with safe_open(file, framework="pt") as handle:
            return handle.get_tensor(name)


class Overlay:
    """``base`` with some tensors replaced as they are read.

    Args:
        base: where tensors come from.
        replace: called with the full name and the dense tensor of everything that is read; returns the tensor to
            use, which may be the same one.
    """

    def __init__(self, base: Weights, replace: Callable[[str, torch.Tensor], torch.Tensor]) -> None:
        self.base = base
        self.replace = replace

    @property
    def config(self) -> Mapping[str, Any]:
        return self.base.config

    @property
    def layout(self) -> TensorLayout:
        return self.base.layout

    def under(self, prefix: str) -> dict[str, torch.Tensor]:
        return {name: self.replace(prefix + name, tensor) for name, tensor in self.base.under(prefix).items()}
