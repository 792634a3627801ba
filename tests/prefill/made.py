"""Random linears as a checkpoint and as vLLM's kernels store them, by the tables of `layouts` alone."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import torch

from vllm_qwen36_plugin.prefill.expand import reference
from vllm_qwen36_plugin.prefill.layouts import LAYOUTS, Layout, marlin_scale_places
from vllm_qwen36_plugin.prefill.shape import Shape


def into_words(lanes: torch.Tensor, bits: int) -> torch.Tensor:
    """Int32 words of values ``[..., 32 / bits]``, the lowest bits first."""
    words = torch.zeros(lanes.shape[:-1], dtype=torch.int64)
    for lane in range(lanes.shape[-1]):
        words |= lanes[..., lane].long() << (bits * lane)
    return torch.where(words >= 1 << 31, words - (1 << 32), words).to(torch.int32)


def out_of_words(words: torch.Tensor, bits: int) -> torch.Tensor:
    """The reverse: int64 ``[..., 32 / bits]``."""
    shifts = torch.arange(0, 32, bits)
    return (words.long()[..., None] >> shifts) & ((1 << bits) - 1)


def pack(codes: torch.Tensor, layout: Layout) -> torch.Tensor:
    """Codes ``[k, n]`` as the kernel of that layout keeps them: int32, flat."""
    return layout.words_of(codes)


def checkpoint_words(codes: torch.Tensor, bits: int) -> torch.Tensor:
    """Codes ``[k, n]`` as GPTQ stores them: int32 ``[k * bits / 32, n]``."""
    k, n = codes.shape
    return into_words(codes.reshape(k * bits // 32, 32 // bits, n).transpose(1, 2), bits)


def checkpoint_codes(words: torch.Tensor, bits: int) -> torch.Tensor:
    """The reverse: int64 ``[k, n]``."""
    return out_of_words(words, bits).transpose(1, 2).reshape(-1, words.shape[1])


def scale_places(n: int, layout: str, groups: int) -> torch.Tensor:
    return marlin_scale_places(n, grouped=groups > 1) if layout == "marlin" else torch.arange(n)


@dataclass(frozen=True)
class Weight:
    """A linear: codes int64 ``[k, n]`` and scales ``[groups, n]``, in natural order."""

    shape: Shape
    codes: torch.Tensor
    scales: torch.Tensor

    @classmethod
    def random(cls, shape: Shape, seed: int = 0, scales: torch.Tensor | None = None) -> Weight:
        generator = torch.Generator().manual_seed(seed)
        codes = torch.randint(0, 1 << shape.bits, (shape.k, shape.n), generator=generator)
        groups = 1 if shape.group_size == -1 else shape.k // shape.group_size
        if scales is None:
            scales = torch.randn(groups, shape.n, generator=generator) * 0.01  # of either sign
        return cls(shape, codes, scales.to(getattr(torch, shape.dtype)))

    @property
    def layout(self) -> Layout:
        return LAYOUTS[self.shape.layout, self.shape.bits]

    def with_code(self, k: int, n: int, code: int) -> Weight:
        codes = self.codes.clone()
        codes[k, n] = code
        return replace(self, codes=codes)

    def words(self) -> torch.Tensor:
        """The checkpoint's."""
        return checkpoint_words(self.codes, self.shape.bits)

    def stock_words(self) -> torch.Tensor:
        """The stock kernel's."""
        return pack(self.codes, self.layout)

    def stock_scales(self) -> torch.Tensor:
        """The stock kernel's."""
        stored = torch.empty_like(self.scales)
        stored[:, scale_places(self.shape.n, self.shape.layout, len(self.scales))] = self.scales
        return stored

    def dense(self) -> torch.Tensor:
        """``[n, k]`` in float32: each a product of an integer and a scale, not rounded."""
        values = (self.codes - (1 << (self.shape.bits - 1))).float()
        return (values * self.scales.float().repeat_interleave(self.shape.k // len(self.scales), dim=0)).t()


def same(result: torch.Tensor, expected: torch.Tensor) -> bool:
    """Bit for bit, but for which NaN a NaN is."""
    both_nan = result.float().isnan() & expected.float().isnan()
    integers = {1: torch.uint8, 2: torch.int16, 4: torch.int32}[result.element_size()]
    return result.dtype == expected.dtype and bool(
        ((result.contiguous().view(integers) == expected.contiguous().view(integers)) | both_nan).all()
    )


class DenseKernel:
    """A stock kernel's `apply_weights`: ``x @ W + bias`` from the tensors that a layer has at the call."""

    def __init__(self, shape: Shape, words: str = "words", scales: str = "scales") -> None:
        self.shape = shape
        self.words, self.scales = words, scales
        self.calls: list[int] = []
        self.layers: list[Any] = []

    def apply_weights(self, layer: Any, x: torch.Tensor, bias: torch.Tensor | None = None) -> torch.Tensor:
        self.calls.append(x.shape[0])
        self.layers.append(layer)
        dense = torch.empty(self.shape.n, self.shape.k, dtype=x.dtype)
        reference(
            getattr(layer, self.words),
            getattr(layer, self.scales),
            dense,
            0,
            layout=self.shape.layout,
            bits=self.shape.bits,
            group_size=self.shape.group_size,
        )
        out = x @ dense.t()
        return out if bias is None else out + bias
