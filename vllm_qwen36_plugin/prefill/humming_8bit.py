"""Humming's kernel with activations of 8 bits, on the words that Marlin holds: the route ``a8``.

The words are rearranged into the scratch at each call (``eight_bit_words``); scales are used as they lie. Codes are
multiplied as they are, so only activations lose bits.

Humming compiles a kernel for each range of numbers of tokens. Those for fewer than :data:`FEWEST` are left out: a
route starts with more.
"""

from __future__ import annotations

import copy
import json
from typing import Any, NamedTuple

import torch

from . import humming, scratch
from .activations import quantize_groups, quantize_tokens
from .eight_bit_words import Order, rearrange
from .shape import Shape

# Least number of tokens that kernels are chosen and compiled for; fewer are served by the kernel for these.
FEWEST = 128
# Seconds that a start waits for kernels that are still being compiled: the user asked for them by name.
PATIENCE = 240.0
_GROUP = 128
# Of locks, 32 bits each, for each multiprocessor: more than any of Humming's kernels asks for.
_LOCKS = 32


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

    @property
    def stored(self) -> torch.dtype:
        """Type of a quantized activation."""
        return torch.int8 if self.dtype == "int8" else torch.float8_e4m3fn

    def config(self, shape: Shape, index: int) -> Any:
        """Describe a linear to Humming, on the GPU of that number."""
        from humming.config import LayerConfig

        major, minor = torch.cuda.get_device_capability(index)
        return LayerConfig(
            sm_version=major * 10 + minor,
            a_dtype=self.dtype,
            b_dtype="uint4",
            bs_dtype=shape.dtype,
            c_dtype=shape.dtype,
            shape_n=shape.n,
            shape_k=shape.k,
            weight_scale_group_size=shape.group_size,
            weight_scale_type="group",
            input_scale_group_size=self.group,
            # Hopper's own order of words otherwise.
            use_packed_k_layout=False,
        )

    def compile(self, shape: Shape, index: int) -> torch.Tensor:
        """Compile the kernels of a shape, or find them where Humming keeps them."""
        from humming.kernel.humming import HummingKernel
        from humming.tune import get_heuristics_config

        compute = {"use_batch_invariant": False, "use_f16_accum": self.half, "gemm_type": "dense"}
        with torch.cuda.device(index):
            config = self.config(shape, index)
            ranges = many_tokens(get_heuristics_config(config, **compute, device=index))
            # As a list: JSON would make lists of its tuples.
            return HummingKernel.prepare_kernels(config.to_str(), json.dumps(compute), ranges, index)


KINDS = {
    "int8 g128": Kind("int8", _GROUP),
    "e4m3 g128": Kind("float8e4m3", _GROUP),
    "e4m3 tokens": Kind("float8e4m3", 0),
    "e4m3 g128, half": Kind("float8e4m3", _GROUP, half=True),
}
# Those that `a8` serves by, the one that loses least first.
SERVED = ("int8 g128", "e4m3 g128")


def many_tokens(ranges: list[Any]) -> list[Any]:
    """Keep Humming's ranges of numbers of tokens, ``[above, up to, how]``, from :data:`FEWEST` on.

    The first then begins at 0.
    """
    kept = [copy.deepcopy(list(each)) for each in ranges if each[1] >= FEWEST]
    kept[0][0] = 0
    return kept


def problem_with(shape: Shape) -> str | None:
    """Say why a linear cannot be multiplied so; None if Humming may try."""
    if shape.layout != "marlin" or shape.bits != 4 or shape.group_size != _GROUP:
        return f"it takes 4-bit weights in groups of {_GROUP} as Marlin holds them"
    if not humming.suits(shape):
        return "it needs humming-kernels, and columns in multiples of 256"
    return None


class EightBitKernel:
    """Multiplies x ``[m, k]`` by words and scales in Marlin's layout, with activations of 8 bits: ``[m, n]``.

    Attributes:
        name: one of `KINDS`.
        kind: how activations are quantized.
        locks: int32, zero between calls.
    """

    def __init__(self, shape: Shape, name: str, device: torch.device, patience: float = PATIENCE) -> None:
        """Wait for Humming's kernels of a shape.

        Raises:
            TimeoutError: they are still being compiled.
            Exception: whatever Humming or its compiler raises.
        """
        from humming.ops import launch_kernel

        self.shape, self.name, self.kind, self._launch = shape, name, KINDS[name], launch_kernel
        self._configs = humming.compiled(shape, device, self.kind, patience)
        self.config: Any = self.kind.config(shape, humming.index_of(device))
        # Humming before 0.1.19 has no flat order.
        flat = getattr(self.config, "use_flat_weight", False)
        self.order: Order = "flat" if flat else "plain" if self.kind.dtype == "int8" else "signs"
        blocks = torch.cuda.get_device_properties(device).multi_processor_count
        self.locks = torch.zeros(blocks * _LOCKS, dtype=torch.int32, device=device)

    def __call__(
        self, x: torch.Tensor, words: torch.Tensor, scales: torch.Tensor, out: torch.Tensor | None = None
    ) -> torch.Tensor:
        """Multiply contiguous x; the scratch holds the rearranged words afterwards.

        ``out``: contiguous ``[m, n]`` to write to, or None for a new one; it is returned.
        """
        n, k = self.shape.n, self.shape.k
        out = x.new_empty(x.shape[0], n) if out is None else out
        if self.kind.group:
            quantized, input_scales = quantize_groups(x, self.kind.stored)
        else:
            quantized, input_scales = quantize_tokens(x)
        held = scratch.words(x.device, k, n)
        rearrange(words, held, 0, n, self.order)
        self._launch(
            configs=self._configs,
            inputs=quantized,
            weight=held.view(n, k // 8) if self.order == "flat" else held,
            weight_scale=scales,
            input_scale=input_scales,
            outputs=out,
            locks=self.locks,
        )
        return out

    def same_words(
        self, packed: torch.Tensor, scales: torch.Tensor, words: torch.Tensor, held_scales: torch.Tensor
    ) -> bool:
        """Whether Humming itself makes the same of a weight.

        Args:
            packed, scales: as GPTQ has them, int32 ``[k / 8, n]`` and ``[groups, n]``.
            words, held_scales: the same as Marlin holds them.
        """
        from humming.transform import transform_humming_tensors

        tensors = {"weight": packed.t().contiguous(), "weight_scale": scales.t().contiguous()}
        own = transform_humming_tensors(self.config, tensors)
        held = scratch.words(words.device, self.shape.k, self.shape.n)
        rearrange(words, held, 0, self.shape.n, self.order)
        pairs = (own["weight"], held), (own["weight_scale"], held_scales)
        return all(
            torch.equal(a.view(torch.int16).reshape(-1), b.view(torch.int16).reshape(-1)) for a, b in pairs
        )
