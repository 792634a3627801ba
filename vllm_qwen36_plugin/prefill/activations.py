"""The Triton kernels that quantize 16-bit activations: to e4m3 with a scale a token, to 8 bits with one a group.

vLLM's op does the former and reads every token twice. This one keeps a token in registers. Microseconds for 8,192
tokens on an H200 (vLLM 0.26.0):

===============================  =====  =====  ======
values of a token                5,120  6,144  17,408
===============================  =====  =====  ======
this kernel                         36     42     108
vLLM's op                           51     55     141
reading and writing at full rate    29     35     100
===============================  =====  =====  ======
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import triton
import triton.language as tl

from .launch import launcher

# Largest finite e4m3, and vLLM's least scale.
_MOST = tl.constexpr(448.0)
_LEAST_SCALE = tl.constexpr(1.0 / (448.0 * 512.0))
# More warps for longer tokens: 17,408 values take 108 µs with 8 and 124 with 4, 5,120 take 36 with 4 and 42 with 8.
_LONG = 8192
# Values of a token that share a scale in `quantize_groups`, groups of a program, and the least scale.
GROUP = 128
_GROUPS = 16
_LEAST_GROUP = tl.constexpr(2.0**-100)
# Added to a float32 of small magnitude it rounds that to a whole number, half to even, in the low bits.
_TO_WHOLE = tl.constexpr(12582912.0)
_WHOLE = tl.constexpr(0x4B400000)
_launchers: dict[tuple[Any, ...], Callable[..., None]] = {}


@triton.jit
def _larger(a, b):  # type: ignore[no-untyped-def]
    return tl.maximum(a, b)


@triton.jit
def _quantize_tokens(  # type: ignore[no-untyped-def]
    x_ptr, out_ptr, scales_ptr, k, FIRST: tl.constexpr, REST: tl.constexpr, WHOLE: tl.constexpr
):
    """Quantize one token: its first ``FIRST`` values and the ``REST``, all of which exist if ``WHOLE``."""
    at = tl.program_id(0).to(tl.int64) * k
    first = tl.arange(0, FIRST)
    values = tl.load(x_ptr + at + first).to(tl.float32)
    most = tl.reduce(tl.abs(values), 0, _larger)
    if REST > 0:
        rest = FIRST + tl.arange(0, REST)
        inside = (rest < k) | WHOLE
        others = tl.load(x_ptr + at + rest, mask=inside, other=0.0).to(tl.float32)
        most = tl.maximum(most, tl.reduce(tl.abs(others), 0, _larger))
    scale = tl.maximum(tl.div_rn(most, _MOST), _LEAST_SCALE)
    tl.store(scales_ptr + tl.program_id(0), scale)
    inverse = tl.div_rn(1.0, scale)
    # A NaN stays a NaN: nothing is clamped, and a product exceeds 448 by its rounding alone.
    tl.store(out_ptr + at + first, (values * inverse).to(tl.float8e4nv))
    if REST > 0:
        tl.store(out_ptr + at + rest, (others * inverse).to(tl.float8e4nv), mask=inside)


def quantize_tokens(x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Quantize contiguous BF16 or FP16 ``x`` ``[m, k]`` to e4m3.

    A token's scale is its largest magnitude over 448, and at least 1 / (448 * 512). A NaN stays one. An infinity
    becomes a NaN and the rest of its token zeros, as in vLLM's op.

    Returns:
        e4m3 ``[m, k]``, and a float32 scale per token ``[m, 1]``.
    """
    m, k = x.shape
    quantized = torch.empty(m, k, dtype=torch.float8_e4m3fn, device=x.device)
    scales = torch.empty(m, 1, dtype=torch.float32, device=x.device)
    if not m:
        return quantized, scales
    pointers = x.data_ptr(), quantized.data_ptr(), scales.data_ptr()
    kind = (k, x.dtype, x.device, not (pointers[0] | pointers[1] | pointers[2]) & 15)
    launch = _launchers.get(kind)
    if launch is not None:
        launch(m, 1, x.device.index, *pointers, k)
        return quantized, scales
    # Two powers of two: one alone would be mostly empty. 17,408 are 16,384 and 1,024.
    first = 1 << (k.bit_length() - 1)
    rest = triton.next_power_of_2(k - first) if k > first else 0
    constants = (first, rest, first + rest == k)
    compiled = _quantize_tokens[m, 1, 1](x, quantized, scales, k, *constants, num_warps=4 if k < _LONG else 8)
    if hasattr(compiled, "function"):
        _launchers[kind] = launcher(compiled, constants)
    return quantized, scales


@triton.jit
def _larger_or_nan(a, b):  # type: ignore[no-untyped-def]
    return tl.maximum(a, b, propagate_nan=tl.PropagateNan.ALL)


@triton.jit
def _quantize_groups(  # type: ignore[no-untyped-def]
    x_ptr, out_ptr, scales_ptr, k, WHOLE: tl.constexpr, MOST: tl.constexpr, GROUPS: tl.constexpr
):
    """Quantize ``GROUPS`` groups of 128 values of one token, to whole numbers or e4m3."""
    token = tl.program_id(0).to(tl.int64)
    group = tl.program_id(1) * GROUPS + tl.arange(0, GROUPS)
    at = token * k + group[:, None] * 128 + tl.arange(0, 128)[None, :]
    inside = group * 128 < k
    values = tl.load(x_ptr + at, mask=inside[:, None], other=0.0).to(tl.float32)
    most = tl.reduce(tl.abs(values), 1, _larger_or_nan)
    scale = _larger_or_nan(tl.div_rn(most, MOST), tl.full([GROUPS], _LEAST_GROUP, tl.float32))
    tl.store(scales_ptr + token * (k // 128) + group, scale, mask=inside)
    scaled = values * tl.div_rn(1.0, scale)[:, None]
    if WHOLE:
        rounded = ((scaled + _TO_WHOLE).to(tl.int32, bitcast=True) - _WHOLE).to(tl.int8)
    else:
        rounded = scaled.to(tl.float8e4nv)
    tl.store(out_ptr + at, rounded, mask=inside[:, None])


def quantize_groups(x: torch.Tensor, dtype: torch.dtype) -> tuple[torch.Tensor, torch.Tensor]:
    """Quantize contiguous BF16 or FP16 ``x`` ``[m, k]`` with a scale for each 128 values; 128 divides k.

    A scale is the group's largest magnitude over 127 (int8) or 448 (e4m3), and at least 2**-100. A NaN makes its
    group's scale one, and so does what is multiplied by it; an infinity makes it infinite.

    Args:
        dtype: ``torch.int8``, rounded half to even, or ``torch.float8_e4m3fn``.

    Returns:
        ``[m, k]`` of ``dtype``, and float32 ``[m, k / 128]``.
    """
    m, k = x.shape
    quantized = torch.empty(m, k, dtype=dtype, device=x.device)
    scales = torch.empty(m, k // GROUP, dtype=torch.float32, device=x.device)
    if not m:
        return quantized, scales
    pointers = x.data_ptr(), quantized.data_ptr(), scales.data_ptr()
    kind = ("groups", k, x.dtype, dtype, x.device, not (pointers[0] | pointers[1] | pointers[2]) & 15)
    launch, along = _launchers.get(kind), -(-k // (GROUP * _GROUPS))
    if launch is not None:
        launch(m, along, x.device.index, *pointers, k)
        return quantized, scales
    constants = (dtype == torch.int8, most_of(dtype), _GROUPS)
    compiled = _quantize_groups[m, along, 1](x, quantized, scales, k, *constants, num_warps=4)
    if hasattr(compiled, "function"):
        _launchers[kind] = launcher(compiled, constants)
    return quantized, scales


def most_of(dtype: torch.dtype) -> float:
    """Give the magnitude that a group's largest value becomes."""
    return 127.0 if dtype == torch.int8 else 448.0


def reference_groups(x: torch.Tensor, dtype: torch.dtype) -> tuple[torch.Tensor, torch.Tensor]:
    """Do what :func:`quantize_groups` does in plain torch: for tests, CPUs, and start-up's self-test."""
    groups = x.float().unflatten(-1, (-1, GROUP))
    scales = (groups.abs().amax(dim=-1, keepdim=True) / most_of(dtype)).clamp(min=2.0**-100)
    scaled = groups * (1 / scales)
    quantized = (scaled.round() if dtype == torch.int8 else scaled).to(dtype)
    return quantized.flatten(-2), scales.squeeze(-1)


def values_of(quantized: torch.Tensor, scales: torch.Tensor) -> torch.Tensor:
    """Multiply quantized ``[m, k]`` by the scales of its groups: float32."""
    return (quantized.float().unflatten(-1, (-1, GROUP)) * scales.unsqueeze(-1)).flatten(-2)
