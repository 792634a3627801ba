"""The packed weight as Humming reads it for activations of 8 bits: the same 4-bit codes, words in another order.

Humming multiplies 4-bit codes by int8 or e4m3 activations without rounding the weight a second time. Its words for
that differ from those for 16 bits, which are Marlin's. So a part of the weight goes through the scratch: half a
byte a value is read and written, where a dense route writes one or two.

Scales stay as they are: grouped, both kernels take Marlin's order. With int8 activations and one scale a token
Humming rounds the weight's scales to 1,024 steps of the largest; with scales of groups of 128 on both sides it does
not (``use_int_weight_scale``, 0.1.19).

There are three orders:

* ``"plain"`` and, for e4m3, ``"signs"``, where a code is a sign and a magnitude. Read in ``weight_repack_nk`` of
  humming-kernels 0.1.19 and compared with what that function makes, compiled for a CPU: equal word by word for
  128 x 192 random codes.
* ``"flat"``: 32 values along k of one column, then those of the next column, signed. Humming takes it for int8,
  where loading from shared memory can widen 4 bits to 8 (``use_flat_weight``): everywhere, unless it is told not to
  patch what it compiled. Read in ``transform_humming_weight`` of the same version, which is torch.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Literal

import torch
import triton
import triton.language as tl

from .launch import launcher
from .layouts import HUMMING_4, HUMMING_FLAT_4, MARLIN_4

# Pairs of Marlin's tiles along k that a program rearranges, of 64 columns each.
_PAIRS = 8
_COLUMNS = 64
_WARPS = 4
Order = Literal["plain", "signs", "flat"]
_launchers: dict[tuple[Any, ...], Callable[..., None]] = {}


@triton.jit
def _nibbles(a, b, c, d, AT: tl.constexpr):  # type: ignore[no-untyped-def]
    """Collect two nibbles, ``AT`` bits up and 16 above that, of four words: those of k, k + 16, k + 2, k + 18."""
    low = ((a >> AT) & 15) | (((b >> AT) & 15) << 4) | (((c >> AT) & 15) << 16) | (((d >> AT) & 15) << 20)
    return low | (
        (((a >> (AT + 16)) & 15) << 8)
        | (((b >> (AT + 16)) & 15) << 12)
        | (((c >> (AT + 16)) & 15) << 24)
        | (((d >> (AT + 16)) & 15) << 28)
    )


@triton.jit
def _signed(words, SIGNS: tl.constexpr):  # type: ignore[no-untyped-def]
    """Make each code its sign and the magnitude below: 8 to 15 become 0 to 7, and 7 to 0 become 8 to 15."""
    if SIGNS:
        negative = ~(words >> 3) & 0x11111111
        words = words ^ (negative * 7) ^ -2004318072  # 0x88888888
    return words


@triton.jit
def _rearrange(  # type: ignore[no-untyped-def]
    words_ptr, out_ptr, k, n, first, columns, SIGNS: tl.constexpr, PAIRS: tl.constexpr
):
    """Write 64 columns from ``first + 64 * program`` on, for ``PAIRS`` times 32 values along k."""
    pair = tl.program_id(0) * PAIRS + tl.arange(0, PAIRS)
    a = pair[:, None, None, None]
    col = tl.arange(0, 8)[None, :, None, None]
    k4 = tl.arange(0, 2)[None, None, :, None]
    b = tl.arange(0, 4)[None, None, None, :]  # n + 16 and n + 32
    inside = a * 32 < k
    tile = a * 2 * (n // 64) + first // 64 + tl.program_id(1)
    near = words_ptr + tile * 128 + col * 16 + k4 * 8 + b
    far = near + (n // 64) * 128  # k + 16
    w0 = tl.load(near, mask=inside, other=0)
    w16 = tl.load(far, mask=inside, other=0)
    w2 = tl.load(near + 4, mask=inside, other=0)
    w18 = tl.load(far + 4, mask=inside, other=0)
    # Of a word's nibbles, those of n + 8 are 8 bits up and those of k + 8 four.
    k0 = tl.join(_nibbles(w0, w16, w2, w18, 0), _nibbles(w0, w16, w2, w18, 8))
    k8 = tl.join(_nibbles(w0, w16, w2, w18, 4), _nibbles(w0, w16, w2, w18, 12))
    made = tl.reshape(
        _signed(tl.join(k0, k8), SIGNS), (PAIRS, 8, 2, 2, 2, 2, 2)
    )  # a, col, k4, n32, n16, n8, k8
    ordered = tl.reshape(tl.permute(made, (0, 3, 1, 6, 2, 4, 5)), (PAIRS, 256))
    line = pair[:, None]
    target = line * (columns * 4) + tl.program_id(1) * 256 + tl.arange(0, 256)[None, :]
    tl.store(out_ptr + target, ordered, mask=line * 32 < k)


@triton.jit
def _column(w0, w2, w4, w6, AT: tl.constexpr):  # type: ignore[no-untyped-def]
    """Collect two nibbles, ``AT`` bits up and 16 above that, of four words: eight values along k, signed."""
    low = ((w0 >> AT) & 15) | (((w0 >> (AT + 16)) & 15) << 4) | (((w2 >> AT) & 15) << 8)
    high = (((w4 >> AT) & 15) << 16) | (((w4 >> (AT + 16)) & 15) << 20) | (((w6 >> AT) & 15) << 24)
    ends = (((w2 >> (AT + 16)) & 15) << 12) | (((w6 >> (AT + 16)) & 15) << 28)
    return (low | high | ends) ^ -2004318072  # 0x88888888


@triton.jit
def _flatten(words_ptr, out_ptr, k, n, first, columns, PAIRS: tl.constexpr):  # type: ignore[no-untyped-def]
    """Do what ``_rearrange`` does for the order ``"flat"``."""
    pair = tl.program_id(0) * PAIRS + tl.arange(0, PAIRS)
    a = pair[:, None, None, None]
    col = tl.arange(0, 8)[None, :, None, None]
    k16 = tl.arange(0, 2)[None, None, :, None]
    b = tl.arange(0, 4)[None, None, None, :]  # n + 16 and n + 32
    inside = a * 32 < k
    tile = (a * 2 + k16) * (n // 64) + first // 64 + tl.program_id(1)
    at = words_ptr + tile * 128 + col * 16 + b
    w0 = tl.load(at, mask=inside, other=0)
    w2 = tl.load(at + 4, mask=inside, other=0)
    w4 = tl.load(at + 8, mask=inside, other=0)
    w6 = tl.load(at + 12, mask=inside, other=0)
    # Of a word's nibbles, those of k + 8 are four bits up and those of n + 8 eight.
    n0 = tl.join(_column(w0, w2, w4, w6, 0), _column(w0, w2, w4, w6, 4))
    n8 = tl.join(_column(w0, w2, w4, w6, 8), _column(w0, w2, w4, w6, 12))
    made = tl.reshape(tl.join(n0, n8), (PAIRS, 8, 2, 2, 2, 2, 2))  # a, col, k16, n32, n16, k8, n8
    ordered = tl.reshape(tl.permute(made, (0, 3, 4, 6, 1, 2, 5)), (PAIRS, 256))
    line = pair[:, None]
    target = line * (columns * 4) + tl.program_id(1) * 256 + tl.arange(0, 256)[None, :]
    tl.store(out_ptr + target, ordered, mask=line * 32 < k)


def rearrange(words: torch.Tensor, out: torch.Tensor, first: int, n: int, order: Order) -> None:
    """Write columns of a 4-bit W ``[k, n]`` in Marlin's order as Humming reads them for activations of 8 bits.

    Args:
        words: int32, as Marlin holds them, of any shape.
        out: int32 ``[k / 32, 4 * columns]``, contiguous. k is a multiple of 32.
        first: the first column; a multiple of 64, as is the number of columns.
        n: columns of W.
        order: which of Humming's.
    """
    k, columns = len(out) * 32, out.shape[1] // 4
    words_at, out_at = words.data_ptr(), out.data_ptr()
    kind = (order, out.device, not (words_at | out_at) & 15)
    launch = _launchers.get(kind)
    across, along = -(-k // (32 * _PAIRS)), columns // _COLUMNS
    if launch is not None:
        launch(across, along, out.device.index, words_at, out_at, k, n, first, columns)
        return
    kernel, constants = (_flatten, (_PAIRS,)) if order == "flat" else (_rearrange, (order == "signs", _PAIRS))
    compiled = kernel[across, along, 1](words, out, k, n, first, columns, *constants, num_warps=_WARPS)
    if hasattr(compiled, "function"):
        _launchers[kind] = launcher(compiled, constants)


def reference(words: torch.Tensor, out: torch.Tensor, first: int, n: int, order: Order) -> None:
    """Do what :func:`rearrange` does in plain torch, from the tables of ``layouts``: slow, for tests and CPUs."""
    k, columns = len(out) * 32, out.shape[1] // 4
    codes = MARLIN_4.codes(words, k, n)[:, first : first + columns]
    if order == "signs":
        codes = torch.where(codes >= 8, codes - 8, 15 - codes)
    if order == "flat":
        codes = codes ^ 8
    layout = HUMMING_FLAT_4 if order == "flat" else HUMMING_4
    out.copy_(layout.words_of(codes).view_as(out))
