"""The dense routes: multiply by a packed weight by writing it out dense first, then calling a dense GEMM."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch

from vllm_qwen36_plugin.upstream import scaled_mm

from . import scratch
from .activations import quantize_tokens
from .expand import expand
from .profile import GemmName
from .shape import Shape

FP8 = torch.float8_e4m3fn
# For each column its scale and the inverse, in float32.
FP8_SCALE_BYTES = 8
# Largest finite e4m3.
_FP8_MAX = 448.0


class Weight(NamedTuple):
    """A packed weight as the stock kernel holds it.

    Attributes:
        words: int32, in the stock kernel's layout.
        scales: ``[groups, n]``, in the stock kernel's order.
        fp8: float32 ``[2, n]`` from :func:`fp8_scales`; None if ``fp8`` is not served.
    """

    words: torch.Tensor
    scales: torch.Tensor
    fp8: torch.Tensor | None = None


def exact(x: torch.Tensor, weight: Weight, shape: Shape) -> torch.Tensor:
    """Compute ``x @ W`` with W rounded to x's dtype, as Marlin and Machete do.

    ``x`` is ``[m, k]``; returns ``[m, n]``.
    """
    out = x.new_empty(x.shape[0], shape.n)
    tiles = scratch.tiles(x.device, shape.k, shape.n, x.dtype)
    with _sums_in_float32(x.dtype):
        for tile, part in zip(tiles, column_parts(out, tiles, 1), strict=True):
            unpack(weight, tile.dense, tile.first, shape)
            torch.mm(x, tile.transposed, out=part)
    return out


class _sums_in_float32:  # noqa: N801 - used as a function
    """Keep cuBLAS from adding parts of a sum in 16 bits, which PyTorch allows by default; Marlin adds in float32.

    3 µs a call, on two cores. In FP16 such a part overflows beyond 65,504.
    """

    def __init__(self, dtype: torch.dtype) -> None:
        self._name = f"allow_{'fp16' if dtype == torch.float16 else 'bf16'}_reduced_precision_reduction"

    def __enter__(self) -> None:
        self._allowed = getattr(torch.backends.cuda.matmul, self._name)
        setattr(torch.backends.cuda.matmul, self._name, False)

    def __exit__(self, *_: object) -> None:
        setattr(torch.backends.cuda.matmul, self._name, self._allowed)


def fp8(
    x: torch.Tensor,
    weight: Weight,
    shape: Shape,
    gemm: GemmName = "vllm",
    out: torch.Tensor | None = None,
) -> torch.Tensor:
    """Compute ``x @ W`` with both operands in e4m3: one scale per token of ``x`` and one per column of W.

    ``out``: contiguous ``[m, n]`` to write to, or None for a new one; it is returned.

    Raises:
        ValueError: ``weight`` has no FP8 scales.
    """
    if weight.fp8 is None:
        raise ValueError("no FP8 scales were made for this weight")
    out = x.new_empty(x.shape[0], shape.n) if out is None else out
    quantized, token_scales = quantize_tokens(x)
    inverse, column_scales = weight.fp8.split(1)
    tiles = _fp8_tiles(out, shape, gemm)
    parts = zip(column_parts(out, tiles, 1), column_parts(column_scales, tiles, 1), strict=True)
    for tile, (part, scales) in zip(tiles, parts, strict=True):
        unpack(weight, tile.dense, tile.first, shape, inverse)
        scaled_mm.multiply(part, quantized, tile.transposed, token_scales, scales, gemm)
    return out


def _fp8_tiles(out: torch.Tensor, shape: Shape, gemm: GemmName) -> list[scratch.Tile]:
    """Choose where W goes: into parts of the scratch, or whole into a buffer of its own.

    vLLM's GEMM on Hopper cannot write to some columns of ``out``. It writes each part's result to a buffer, and
    that is copied. With enough tokens that buffer is as large as all of W; then W gets it and nothing is copied.
    Of the 27B's linears this concerns gate_up with 128 MiB of scratch: it takes 170 MiB from 5,120 tokens on,
    and at 8,192 the result of a part took 272. It saves 10.8 of 178 ms of kernels (bench/prefill, 8,192 tokens,
    16 layers, one H200). The numbers are the same: above 128 tokens vLLM 0.26 chooses a tile on Hopper by tokens
    and k alone.
    """
    tiles = scratch.tiles(out.device, shape.k, shape.n, FP8)
    result = out.shape[0] * tiles[0].last * out.element_size()
    whole = shape.k * shape.n * FP8.itemsize
    if len(tiles) == 1 or whole > result or scaled_mm.writes_strided(out.device, out.dtype, gemm):
        return tiles
    dense = out.new_empty(shape.n, shape.k, dtype=FP8)
    return [scratch.Tile(0, shape.n, dense, dense.t())]


def column_parts(whole: torch.Tensor, tiles: list[scratch.Tile], dim: int) -> Sequence[torch.Tensor]:
    """View each tile's columns of ``whole``, which lie along ``dim``. All at once: one by one a view takes 3 µs."""
    if len(tiles) == 1:
        return (whole,)
    widths = [tile.last - tile.first for tile in tiles]
    return whole.split_with_sizes(widths, dim)  # type: ignore[no-any-return]


def unpack(
    weight: Weight, part: torch.Tensor, first: int, shape: Shape, inverse: torch.Tensor | None = None
) -> None:
    """Write the columns of W from ``first`` on into ``part`` ``[columns, k]``."""
    expand(
        weight.words,
        weight.scales,
        part,
        first,
        layout=shape.layout,
        bits=shape.bits,
        group_size=shape.group_size,
        inverse=inverse,
    )


def fp8_scales(scales: torch.Tensor, bits: int) -> torch.Tensor:
    """Compute what to divide each column of W by for e4m3: float32 ``[2, n]``, the inverse of that and itself.

    The largest scale of a column's groups times the largest magnitude of a code becomes 448, so nothing
    saturates. A column with a divisor below 2**-100 becomes zeros.

    Args:
        scales: ``[groups, n]`` in natural order.
        bits: 4 or 8.
    """
    most = scales.float().abs().amax(dim=0) * float(1 << (bits - 1))
    column = (most / _FP8_MAX).clamp(min=2.0**-100)
    return torch.stack([1 / column, column])
