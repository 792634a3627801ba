"""A candidate, never run on a GPU: Humming's kernel with activations of 8 bits, on the words that Marlin holds.

The words are rearranged into the scratch at each call (``eight_bit_words``); scales are used as they lie. Codes are
multiplied as they are, so only activations lose bits. ``bench/prefill/eight_bit.py`` measures it. Nothing offers it
to a model before that.
"""

from __future__ import annotations

import json
from typing import Any, NamedTuple

import torch

from .eight_bit_words import rearrange
from .shape import Shape


class Kind(NamedTuple):
    """How activations are quantized.

    Attributes:
        dtype: ``"int8"`` or ``"float8e4m3"``.
        group: values along k that share a scale; 0: all of a token's. With int8 0 would have Humming round the
            weight's scales.
        half: whether sums over k are kept in FP16 between scales.
    """

    dtype: str
    group: int
    half: bool = False


KINDS = {
    "int8 g128": Kind("int8", 128),
    "e4m3 g128": Kind("float8e4m3", 128),
    "e4m3 tokens": Kind("float8e4m3", 0),
    "e4m3 g128, half": Kind("float8e4m3", 128, half=True),
}


class EightBitKernel:
    """Multiplies x ``[m, k]`` by a weight in Marlin's layout, with activations of 8 bits: ``[m, n]``.

    Compiles Humming's kernels when it is made: some 10 s.
    """

    def __init__(self, shape: Shape, kind: Kind, device: torch.device) -> None:
        from humming.config import LayerConfig
        from humming.kernel.humming import HummingKernel
        from humming.ops import launch_kernel

        major, minor = torch.cuda.get_device_capability(device)
        self.shape, self.kind, self._launch = shape, kind, launch_kernel
        self.config: Any = LayerConfig(
            sm_version=major * 10 + minor,
            a_dtype=kind.dtype,
            b_dtype="uint4",
            bs_dtype=shape.dtype,
            c_dtype=shape.dtype,
            shape_n=shape.n,
            shape_k=shape.k,
            weight_scale_group_size=shape.group_size,
            weight_scale_type="group",
            input_scale_group_size=kind.group,
            # Hopper's own order of words otherwise.
            use_packed_k_layout=False,
        )
        compute = json.dumps({"use_batch_invariant": False, "use_f16_accum": kind.half, "gemm_type": "dense"})
        with torch.cuda.device(device):
            self._configs = HummingKernel.prepare_kernels(self.config.to_str(), compute, None, device.index)
        blocks = torch.cuda.get_device_properties(device).multi_processor_count
        self._locks = torch.zeros(blocks * 8, dtype=torch.int32, device=device)

    def __call__(
        self, x: torch.Tensor, words: torch.Tensor, scales: torch.Tensor, scratch: torch.Tensor
    ) -> torch.Tensor:
        """Multiply; ``scratch`` is int32 ``[k / 32, 4 * n]``, and holds the rearranged words afterwards."""
        from humming.forward import may_quant_input

        quantized, input_scales = may_quant_input(self.config, x)
        rearrange(words, scratch, 0, self.shape.n, signs=self.kind.dtype != "int8")
        out = x.new_empty(x.shape[0], self.shape.n)
        self._launch(
            configs=self._configs,
            inputs=quantized,
            weight=scratch,
            weight_scale=scales,
            input_scale=input_scales,
            outputs=out,
            locks=self._locks,
        )
        return out

    def same_words(self, packed: torch.Tensor, scales: torch.Tensor, scratch: torch.Tensor) -> bool:
        """Whether rearranged words are those that Humming makes of GPTQ's ``[k / 8, n]`` and ``[groups, n]``."""
        from humming.transform import transform_humming_tensors

        tensors = {"weight": packed.t().contiguous(), "weight_scale": scales.t().contiguous()}
        own = transform_humming_tensors(self.config, tensors)["weight"]
        return bool(torch.equal(own.view(torch.int32).reshape(-1), scratch.reshape(-1)))
