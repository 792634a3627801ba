"""Dense tensors of a checkpoint by module, whatever it stores."""

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
# Outputs unpacked at once. Unpacking takes four float32 arrays of this many rows: 1.3 GB at 5,120 inputs, where
# the whole output head of the 27B would take 20. A multiple of 32 ends in a whole word of qzeros in any bits.
_ROWS = 16_384


class Weights(Protocol):
    """Where a forward pass takes its tensors from."""

    @property
    def config(self) -> Mapping[str, Any]:
        """The parsed ``config.json``."""

    @property
    def layout(self) -> TensorLayout: ...

    def under(self, prefix: str) -> dict[str, torch.Tensor]:
        """Dense tensors whose names start with ``prefix``, by the rest of the name.

        Quantized linears come as ``….weight``, float32 ``[out_features, in_features]``; all else as stored.
        """


class CheckpointWeights:
    """Tensors of a folder as a loader finds them; packed GPTQ linears (2, 3, 4 or 8 bits, any ``g_idx``) unpacked.

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
                f"is quantized by {quant_method(quantization)!r}; only BF16 originals and GPTQ can be computed "
                "with",
                remedy="Give the BF16 original or a GPTQ checkpoint of it.",
            )
        self._quantization: Mapping[str, Any] = quantization or {}
        stored = str(self._quantization.get("checkpoint_format", self._quantization.get("format", "gptq")))
        if stored not in _FORMATS:
            raise CheckpointError(
                folder,
                f"is packed in the format {stored!r}; only {' and '.join(_FORMATS)} can be computed with",
                remedy="Give the BF16 original, or the checkpoint in the format gptq.",
            )
        self._format = _FORMATS[stored]
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
        """Whether a draft head is stored: every tensor of it, dense or packed.

        Raises:
            CheckpointError: some of its tensors are there and some are not.
        """
        lacking = [
            spec.name
            for spec in self.layout.mtp
            if spec.name not in self.checkpoint.loaded
            and spec.name.removesuffix("weight") + "qweight" not in self.checkpoint.loaded
        ]
        if lacking and len(lacking) < len(self.layout.mtp):
            raise CheckpointError(
                self.checkpoint.location,
                f"lacks {len(lacking)} of {len(self.layout.mtp)} tensors of the MTP head: {lacking[0]}",
                remedy="Run: qwen36 repair CHECKPOINT --mtp-from ORIGINAL; or leave the head out with --drafts 0.",
            )
        return not lacking and bool(self.layout.mtp)

    def under(self, prefix: str) -> dict[str, torch.Tensor]:
        """See :meth:`Weights.under`.

        Raises:
            CheckpointError: there is nothing under ``prefix``, or a packed linear lacks one of its parts.
        """
        found = [name for name in self._names if name.startswith(prefix)]
        if not found:
            raise CheckpointError(self.checkpoint.location, f"holds no tensor under {prefix}")
        packed = {name.removesuffix(".qweight") for name in found if name.endswith(".qweight")}
        out = {
            name.removeprefix(prefix): self._read(name)
            for name in found
            # A bias is kept: the architecture has none, so that whoever fills it in finds one too many.
            if name.rpartition(".")[0] not in packed or name.rpartition(".")[2] not in (*_PARTS, "weight")
        }
        for module in sorted(packed):
            out[f"{module}.weight".removeprefix(prefix)] = self._unpacked(module)
        return out

    def _unpacked(self, module: str) -> torch.Tensor:
        names = {part: f"{module}.{part}" for part in _PARTS}
        lacking = [part for part, name in names.items() if name not in self.checkpoint.loaded]
        # Without act order a g_idx says nothing, and vLLM does not read it.
        if lacking and (lacking != ["g_idx"] or self._quantization.get("desc_act")):
            raise CheckpointError(
                self.checkpoint.location, f"has no {names[lacking[0]]}", remedy="Run: qwen36 check CHECKPOINT"
            )
        rule = dynamic_rule(self._quantization, module)
        overrides = rule if isinstance(rule, Mapping) else {}
        bits = int(overrides.get("bits", self._quantization.get("bits", 4)))
        parts = {part: self._read(name) for part, name in names.items() if part not in lacking}
        try:
            return self._dense(parts, bits)
        except (ValueError, RuntimeError) as error:
            raise CheckpointError(
                self.checkpoint.location,
                f"{module} is not packed in {bits} bits, as the config has it: {error}",
                remedy="Run: qwen36 check CHECKPOINT",
            ) from error

    def _dense(self, parts: Mapping[str, torch.Tensor], bits: int) -> torch.Tensor:
        """float32 ``[out_features, in_features]``, unpacked some outputs at a time."""
        qweight, scales, qzeros = parts["qweight"], parts["scales"], parts["qzeros"]
        weight: torch.Tensor | None = None
        for start in range(0, qweight.shape[1], _ROWS):
            end = min(start + _ROWS, qweight.shape[1])
            rows = dequantize(
                qweight[:, start:end],
                scales[:, start:end],
                qzeros[:, start * bits // 32 : -(-end * bits // 32)],
                parts.get("g_idx"),
                bits,
                checkpoint_format=self._format,
            )
            if weight is None:
                if end == qweight.shape[1]:
                    return rows
                weight = rows.new_empty(qweight.shape[1], rows.shape[1])
            weight[start:end] = rows
        if weight is None:
            raise ValueError("qweight has no outputs")
        return weight

    def _read(self, name: str) -> torch.Tensor:
        file = self.checkpoint.path / self.checkpoint.loaded[name].file
        # Opened anew for each tensor: the mapping of a 15 GB shard is not kept, and threads share nothing.
        with safe_open(file, framework="pt") as handle:
            return handle.get_tensor(name)


class Overlay:
    """``base`` with some tensors replaced as they are read.

    ``replace`` is called with the full name and the dense tensor of everything that is read, and returns what to
    use instead: the tensor itself to leave it alone.
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
