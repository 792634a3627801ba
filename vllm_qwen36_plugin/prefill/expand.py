"""The Triton kernel that makes a stock kernel's packed weight dense, some columns at a time; and its reference.

The kernel reads every word once, in memory order, and writes every line of the result once. In between, Triton
moves values between threads through shared memory. Codes become floats without a conversion: as the low bits of
the mantissa of 2**23.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import triton
import triton.language as tl
from packaging.version import Version

from .launch import launcher
from .layouts import LAYOUTS, marlin_scale_places

# Values along k that a program writes for each of its 64 columns: 128 or 64 a thread. From 3.7 on Triton keeps more
# of them at once. For 4 bits 256 take 85 to 128 registers, where 3.6 took 56 to 118; 128 take 52 to 72.
BLOCK_K = 256 if Version(triton.__version__) < Version("3.7") else 128
_BLOCK_N = 64
_WARPS = 4
# By everything that makes Triton compile another kernel.
_launchers: dict[tuple[Any, ...], Callable[..., None]] = {}


@triton.jit
def _lane(words, LANE: tl.constexpr, BITS: tl.constexpr, scale):  # type: ignore[no-untyped-def]
    """Take value number ``LANE`` of each word, subtract the middle of its range, multiply by ``scale``: float32.

    The value stays where it is in the word; the exponent is chosen so that it counts ones there. Saving the
    shift to the low bits brings 17,408 x 5,120 e4m3 from Marlin's layout from 50.5 down to 46.5 µs on an H200.
    """
    HIGH: tl.constexpr = LANE * BITS >= 16  # beyond the mantissa
    AT: tl.constexpr = LANE * BITS % 16
    MIDDLE: tl.constexpr = (1 << (23 - AT)) + (1 << (BITS - 1))
    value = (words >> 16 if HIGH else words) & (((1 << BITS) - 1) << AT)
    exact = (value | ((150 - AT) << 23)).to(tl.float32, bitcast=True) - MIDDLE
    return exact * scale


@triton.jit
def _pair(words, LANE: tl.constexpr, K1: tl.constexpr, BITS: tl.constexpr, scale, OUT: tl.constexpr):  # type: ignore[no-untyped-def]
    """Put the values of k and k + 1 side by side in a last dimension."""
    return tl.join(_lane(words, LANE, BITS, scale).to(OUT), _lane(words, LANE + K1, BITS, scale).to(OUT))


@triton.jit
def _expand(  # type: ignore[no-untyped-def]
    words_ptr,
    scales_ptr,
    inverse_ptr,
    out_ptr,
    k,
    n,
    first,
    GROUP: tl.constexpr,
    BITS: tl.constexpr,
    MARLIN: tl.constexpr,
    INVERSE: tl.constexpr,
    BLOCK_A: tl.constexpr,
    BLOCK_N: tl.constexpr,
):
    """Write 64 columns of W ``[k, n]`` from ``first + 64 * program`` on, transposed, for one run along k.

    A word's place is a (tiles along k), [c (tiles along n)], col = n % 8, r = k % 8 // 2, b (the rest).
    """
    B: tl.constexpr = BITS  # 4 or 8 words side by side differ in b
    SUB: tl.constexpr = 1 if MARLIN else BLOCK_N // 16
    STEP: tl.constexpr = 16 if MARLIN else 64
    a = tl.program_id(0) * BLOCK_A + tl.arange(0, BLOCK_A)[:, None, None, None, None]
    c = tl.arange(0, SUB)[None, :, None, None, None]
    col = tl.arange(0, 8)[None, None, :, None, None]
    r = tl.arange(0, 4)[None, None, None, :, None]
    b = tl.arange(0, B)[None, None, None, None, :]
    column = first + tl.program_id(1) * BLOCK_N
    inside = a * STEP < k
    if MARLIN:
        tile = a * (n // 64) + column // 64
    else:
        tile = a * (n // 16) + column // 16 + c
    # Constants of one element keep the full shape of the word tensor.
    words = tl.load(words_ptr + ((tile * 8 + col) * 4 + r) * B + b, mask=inside, other=0)

    PARTS: tl.constexpr = 1 if (MARLIN and BITS == 8) else 2  # n and n + 8 share a word
    LINES: tl.constexpr = BLOCK_N // PARTS
    RUN: tl.constexpr = BLOCK_A * STEP
    OUT: tl.constexpr = out_ptr.dtype.element_ty
    # Lanes that k + 8, n + 8 and k + 1 are away.
    K8: tl.constexpr = 2 if (BITS == 4 and not MARLIN) else 1
    N8: tl.constexpr = 2 if (BITS == 4 and MARLIN) else 1
    K1: tl.constexpr = 4 if BITS == 4 else 2
    for part in tl.static_range(PARTS):
        # Of each word's values within the block.
        if MARLIN:
            if BITS == 4:
                offset = b * 16 + part * 8 + col
            else:
                offset = b * 8 + col
        else:
            offset = c * 16 + part * 8 + col + 0 * b
        at = column + offset
        if GROUP == 0:
            group = 0 * a
        else:
            group = a * STEP // GROUP  # a group is of whole tiles
        place = at
        if MARLIN:
            if GROUP == 0:
                place = at // 32 * 32 + at % 8 // 2 * 8 + at % 32 // 8 * 2 + at % 2
            else:
                place = at // 64 * 64 + at % 8 * 8 + at % 64 // 8
        scale = tl.load(scales_ptr + group * n + place, mask=inside, other=0.0).to(tl.float32)
        if INVERSE:
            scale = scale * tl.load(inverse_ptr + at)

        if BITS == 8 and not MARLIN:
            values = _pair(words, 2 * part, 1, BITS, scale, OUT)  # a, c, col, r, b (k8 lowest), k1
            dense = tl.reshape(tl.permute(values, (1, 2, 0, 4, 3, 5)), (LINES, RUN))
        else:
            near = _pair(words, N8 * part, K1, BITS, scale, OUT)
            far = _pair(words, N8 * part + K8, K1, BITS, scale, OUT)
            values = tl.join(near, far)  # a, c, col, r, b, k1, k8
            if MARLIN:
                ordered = tl.permute(values, (1, 4, 2, 0, 6, 3, 5))  # c, b, col; a, k8, r, k1
            else:
                ordered = tl.permute(values, (1, 2, 0, 4, 6, 3, 5))  # c, col; a, b, k8, r, k1
            dense = tl.reshape(ordered, (LINES, RUN))
        line = tl.arange(0, LINES)
        if PARTS == 2:
            line = line // 8 * 16 + part * 8 + line % 8
        along = tl.program_id(0) * RUN + tl.arange(0, RUN)
        target = (tl.program_id(1) * BLOCK_N + line)[:, None] * k + along[None, :]
        tl.store(out_ptr + target, dense, mask=(along < k)[None, :])


def expand(
    words: torch.Tensor,
    scales: torch.Tensor,
    out: torch.Tensor,
    first: int,
    *,
    layout: str,
    bits: int,
    group_size: int,
    inverse: torch.Tensor | None = None,
) -> None:
    """Write columns ``first`` to ``first + len(out)`` of a packed W ``[k, n]`` to ``out``, transposed.

    Args:
        words: the stock kernel's int32 weight, of any shape, as it lies in memory.
        scales: the stock kernel's ``[groups, n]``, BF16 or FP16.
        out: ``[columns, k]``, contiguous; BF16, FP16 or ``float8_e4m3fn``.
        first: a multiple of 64, as is the number of columns.
        layout: ``"marlin"`` or ``"machete"``.
        bits: 4 or 8.
        group_size: values along k that share a scale, a multiple of 16 (Machete: 64); -1 if all do.
        inverse: float32 ``[n]``, multiplied into the scales (for FP8); or None.

    Each value is ``(q - 2**(bits-1)) * scale`` in float32, rounded once: the number Marlin multiplies with.
    """
    columns, k = out.shape
    n = scales.shape[-1]
    # Addresses instead of tensors: Triton would ask each tensor for its address, and the driver about that.
    words_at, scales_at, out_at = words.data_ptr(), scales.data_ptr(), out.data_ptr()
    # The kernel does not read it if there is no inverse.
    inverse_at = words_at if inverse is None else inverse.data_ptr()
    # Everything that can differ here and makes Triton compile another kernel.
    aligned = not (words_at | scales_at | out_at | inverse_at) & 15
    group = 0 if group_size in (-1, k) else group_size
    device = out.device
    kind = (layout, bits, group, inverse is None, scales.dtype, out.dtype, device, aligned)
    launch = _launchers.get(kind)
    across, along = -(-k // BLOCK_K), columns // _BLOCK_N
    if launch is not None:
        launch(across, along, device.index, words_at, scales_at, inverse_at, out_at, k, n, first)
        return
    marlin = layout == "marlin"
    constants = (group, bits, marlin, inverse is not None, BLOCK_K // (16 if marlin else 64), _BLOCK_N)
    tensors = (words, scales, words if inverse is None else inverse, out)
    compiled = _expand[across, along, 1](*tensors, k, n, first, *constants, num_warps=_WARPS)
    if hasattr(compiled, "function"):
        _launchers[kind] = launcher(compiled, constants)


def reference(
    words: torch.Tensor,
    scales: torch.Tensor,
    out: torch.Tensor,
    first: int,
    *,
    layout: str,
    bits: int,
    group_size: int,
    inverse: torch.Tensor | None = None,
) -> None:
    """Do what :func:`expand` does in plain torch, from the tables of ``layouts``: slow, for tests and CPUs."""
    columns, k = out.shape
    n = scales.shape[-1]
    in_order = scales[:, marlin_scale_places(n, grouped=len(scales) > 1)] if layout == "marlin" else scales
    factors = in_order.float() if inverse is None else in_order.float() * inverse
    values = (LAYOUTS[layout, bits].codes(words, k, n) - (1 << (bits - 1))).float()
    dense = values * factors.repeat_interleave(k // len(scales), dim=0)
    out.copy_(dense.t()[first : first + columns].to(out.dtype))
