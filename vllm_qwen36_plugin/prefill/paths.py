"""The ways to multiply by a packed weight that write it out dense first."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch

from vllm_qwen36_plugin.upstream import scaled_mm

from . import scratch
from .expand import expand
from .profile import GemmName
from .rows import quantize_rows
from .shape import Shape

FP8 = torch.float8_e4m3fn
# Of each column: its scale and the inverse, in float32.
FP8_SCALE_BYTES = 8
# Largest finite e4m3.
_FP8_MOST = 448.0


class Weight(NamedTuple):
    """A stock kernel's int32 words and scales ``[groups, n]``; for FP8 float32 ``[2, n]`` (`fp8_scales`)."""

    words: torch.Tensor
    scales: torch.Tensor
    fp8: torch.Tensor | None = None


def exact(x: torch.Tensor, weight: Weight, shape: Shape) -> torch.Tensor:
    """``x @ W``, W rounded to x's dtype as Marlin and Machete do. ``x`` ``[m, k]``; returns ``[m, n]``."""
    out = x.new_empty(x.shape[0], shape.n)
    tiles = scratch.tiles(x.device, shape.k, shape.n, x.dtype)
    for tile, part in zip(tiles, _parts(out, tiles, 1), strict=True):
        unpack(weight, tile.dense, tile.first, shape)
        torch.mm(x, tile.transposed, out=part)
    return out


def fp8(x: torch.Tensor, weight: Weight, shape: Shape, gemm: GemmName = "vllm") -> torch.Tensor:
    """The same with both operands in e4m3: a scale a row of ``x``, and a scale a column of W."""
    if weight.fp8 is None:
        raise ValueError("no FP8 scales were made for this weight")
    out = x.new_empty(x.shape[0], shape.n)
    rows, row_scales = quantize_rows(x)
    inverse, column_scales = weight.fp8.split(1)
    tiles = _fp8_tiles(out, shape, gemm)
    parts = zip(_parts(out, tiles, 1), _parts(column_scales, tiles, 1), strict=True)
    for tile, (part, scales) in zip(tiles, parts, strict=True):
        unpack(weight, tile.dense, tile.first, shape, inverse)
        scaled_mm.multiply(part, rows, tile.transposed, row_scales, scales, gemm)
    return out


def _fp8_tiles(out: torch.Tensor, shape: Shape, gemm: GemmName) -> list[scratch.Tile]:
    """Where W goes: parts in the scratch, or a buffer of its own where that takes less memory than their results.

    A GEMM that cannot write some columns of ``out``, vLLM's on Hopper, writes each part's to a buffer, which is
    copied. From as many rows on as make that buffer as large as all of W, W has it, and nothing is copied: of the
    27B's linears gate_up with 128 MiB of scratch, 170 MiB of its own from 5,120 rows on, where at 8,192 a part's
    result took 272. That saves 10.8 of 178 ms of kernels (bench/prefill, 8,192 tokens, 16 layers, one H200). The
    numbers are the same: above 128 rows vLLM 0.26 chooses a tile on Hopper by rows and k alone.
    """
    tiles = scratch.tiles(out.device, shape.k, shape.n, FP8)
    result = out.shape[0] * tiles[0].last * out.element_size()
    whole = shape.k * shape.n * FP8.itemsize
    if len(tiles) == 1 or whole > result or scaled_mm.writes_strided(out.device, out.dtype, gemm):
        return tiles
    dense = out.new_empty(shape.n, shape.k, dtype=FP8)
    return [scratch.Tile(0, shape.n, dense, dense.t())]


def _parts(whole: torch.Tensor, tiles: list[scratch.Tile], dim: int) -> Sequence[torch.Tensor]:
    """A view of each tile's columns, which lie along ``dim``. All at once: one by one a view takes 3 µs."""
    if len(tiles) == 1:
        return (whole,)
    widths = [tile.last - tile.first for tile in tiles]
    return whole.split_with_sizes(widths, dim)  # type: ignore[no-any-return]


def unpack(
    weight: Weight, part: torch.Tensor, first: int, shape: Shape, inverse: torch.Tensor | None = None
) -> None:
    """Columns from ``first`` on of W into ``part`` ``[columns, k]``."""
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
    """For each column of W what to divide it by for e4m3, float32 ``[2, n]``: its inverse, and itself.

    The largest scale of a column's groups times the largest magnitude of a value becomes 448, so nothing
    saturates. A column smaller than the inverse can say becomes zeros. ``scales`` ``[groups, n]`` in natural
    order.
    """
    most = scales.float().abs().amax(dim=0) * float(1 << (bits - 1))
    column = (most / _FP8_MOST).clamp(min=2.0**-100)
    return torch.stack([1 / column, column])
