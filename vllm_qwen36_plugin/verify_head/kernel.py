"""Which tokens may win, found from few bits: four Triton kernels without a word from the host.

    _begin      a program a row: what the copy's best token has in the original weight, so what others must reach
    _refine     a program a tile of tokens: where one may reach it, read two more bits a weight; list who still may
    _recompute  the listed ones again, from the original weight
    _whole      all of them, if the list overflowed; else every program returns at once

What they bound and why is in `planes.py`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
import triton
import triton.language as tl

if TYPE_CHECKING:
    from .planes import Planes

# Tokens of a tile, rows that one dot takes at least, and programs that go through the list.
_TILE, _LEAST_ROWS, _PROGRAMS = 64, 16, 1024
# With four warps `_refine` spills on Ada; with three stages, too.
_WARPS, _STAGES = 8, 2
# Of a row's state: what must be reached, the norm of the hidden state, then its sum in each group.
_HEADER = 2
# Kernels that Triton has compiled: its own look-up takes 60 µs a launch (see prefill/expand.py).
_kernels: dict[tuple[Any, ...], Any] = {}


@triton.jit  # type: ignore[untyped-decorator, unused-ignore]
def _begin(  # type: ignore[no-untyped-def]
    best_ptr,
    hidden_ptr,
    weight_ptr,
    state_ptr,
    found_ptr,
    hidden_stride,
    groups: tl.constexpr,
    group: tl.constexpr,
    block: tl.constexpr,
):
    row = tl.program_id(0)
    if row == 0:
        tl.store(found_ptr, 0)
    token = tl.load(best_ptr + row).to(tl.int64)
    place = tl.arange(0, block)
    at = place[:, None] * group + tl.arange(0, group)[None, :]
    inside = (place < groups)[:, None] & (at >= 0)
    hidden = tl.load(hidden_ptr + row * hidden_stride + at, mask=inside, other=0.0).to(tl.float32)
    weight = tl.load(weight_ptr + token * groups * group + at, mask=inside, other=0.0).to(tl.float32)
    logit = tl.sum(tl.sum(hidden * weight, axis=1), axis=0)
    norm = tl.sqrt(tl.sum(tl.sum(hidden * hidden, axis=1), axis=0))
    size = tl.sqrt(tl.sum(tl.sum(weight * weight, axis=1), axis=0))
    state = state_ptr + row * (groups + 2)
    # A token a whole BF16 step below this logit is rounded to less than it is. Sums in float32 are off by less
    # than 2**-10 of the product of the norms.
    tl.store(state, logit - tl.abs(logit) * 0.0078125 - norm * size * 0.0009765625)
    tl.store(state + 1, norm)
    tl.store(state + 2 + place, tl.sum(hidden, axis=1), mask=place < groups)


@triton.jit(do_not_specialize=["rows", "most"])  # type: ignore[untyped-decorator, unused-ignore]
def _refine(  # type: ignore[no-untyped-def]
    logits_ptr,
    hidden_ptr,
    plane_ptr,
    scale_ptr,
    far_ptr,
    near_ptr,
    state_ptr,
    found_ptr,
    list_ptr,
    n,
    rows,
    logits_stride,
    hidden_stride,
    most,
    groups: tl.constexpr,
    group: tl.constexpr,
    tile: tl.constexpr,
    row_block: tl.constexpr,
):
    at = tl.program_id(0) * tile + tl.arange(0, tile)
    row = tl.arange(0, row_block)
    here = row < rows
    state = state_ptr + row * (groups + 2)
    reach = tl.load(state, mask=here, other=float("inf"))
    norm = tl.load(state + 1, mask=here, other=0.0)
    inside = (at < n)[:, None] & here[None, :]
    logits_at = logits_ptr + row[None, :] * logits_stride + at[:, None]
    logits = tl.load(logits_at, mask=inside, other=0.0).to(tl.float32)
    # Half a BF16 step, to which they were rounded.
    rounded = tl.abs(logits) * 0.00390625
    far = tl.load(far_ptr + at, mask=at < n, other=0.0)
    # So written that NaN may win: it is then the whole head's to say.
    may = inside & ~(logits + rounded + norm[None, :] * far[:, None] < reach[None, :])
    if tl.sum(tl.sum(may.to(tl.int32), axis=1), axis=0) > 0:
        words: tl.constexpr = groups * group // 16
        lane = tl.arange(0, group)
        more = tl.zeros((tile, row_block), dtype=tl.float32)
        for first in range(0, words, group):
            packed = tl.load(
                plane_ptr + at[:, None].to(tl.int64) * words + first + lane[None, :],
                mask=(at < n)[:, None] & (lane >= 0)[None, :],
                other=0,
            )
            for part in range(16):
                # 128 to 131 in BF16.
                codes = (((packed >> (2 * part)) & 3) | 0x4300).to(tl.int16).to(tl.bfloat16, bitcast=True)
                hidden = tl.load(
                    hidden_ptr + row[None, :] * hidden_stride + part * words + first + lane[:, None],
                    mask=here[None, :] & (lane >= 0)[:, None],
                    other=0.0,
                )
                number = part * (words // group) + first // group
                scale = tl.load(scale_ptr + number * n + at, mask=at < n, other=0.0).to(tl.float32)
                total = tl.load(state + 2 + number, mask=here, other=0.0)
                more += scale[:, None] * (tl.dot(codes, hidden) - 129.5 * total[None, :])
        logits += more
        near = tl.load(near_ptr + at, mask=at < n, other=0.0)
        tl.store(logits_at, logits.to(logits_ptr.dtype.element_ty), mask=inside)
        may = inside & ~(logits + rounded + norm[None, :] * near[:, None] < reach[None, :])
        zeros = tl.zeros((tile, row_block), dtype=tl.int32)
        place = tl.atomic_add(found_ptr + zeros, zeros + 1, mask=may)
        tl.store(list_ptr + place, row[None, :] * n + at[:, None], mask=may & (place < most))


@triton.jit(do_not_specialize=["most"])  # type: ignore[untyped-decorator, unused-ignore]
def _recompute(  # type: ignore[no-untyped-def]
    logits_ptr,
    hidden_ptr,
    weight_ptr,
    found_ptr,
    list_ptr,
    n,
    logits_stride,
    hidden_stride,
    most,
    k: tl.constexpr,
    block: tl.constexpr,
    programs: tl.constexpr,
):
    found = tl.load(found_ptr)
    if found <= most:
        at = tl.arange(0, block)
        for place in range(tl.program_id(0), found, programs):
            entry = tl.load(list_ptr + place)
            row, token = entry // n, (entry % n).to(tl.int64)
            hidden = tl.load(hidden_ptr + row * hidden_stride + at, mask=at < k, other=0.0).to(tl.float32)
            weight = tl.load(weight_ptr + token * k + at, mask=at < k, other=0.0).to(tl.float32)
            logit = tl.sum(hidden * weight, axis=0)
            tl.store(logits_ptr + row * logits_stride + token, logit.to(logits_ptr.dtype.element_ty))


@triton.jit(do_not_specialize=["rows", "most"])  # type: ignore[untyped-decorator, unused-ignore]
def _whole(  # type: ignore[no-untyped-def]
    logits_ptr,
    hidden_ptr,
    weight_ptr,
    found_ptr,
    n,
    rows,
    logits_stride,
    hidden_stride,
    most,
    k: tl.constexpr,
    tile: tl.constexpr,
    row_block: tl.constexpr,
    depth: tl.constexpr,
):
    if tl.load(found_ptr) > most:
        at = tl.program_id(0) * tile + tl.arange(0, tile)
        row, lane = tl.arange(0, row_block), tl.arange(0, depth)
        total = tl.zeros((tile, row_block), dtype=tl.float32)
        for first in range(0, k, depth):
            weight = tl.load(
                weight_ptr + at[:, None].to(tl.int64) * k + first + lane[None, :],
                mask=(at < n)[:, None] & (first + lane < k)[None, :],
                other=0.0,
            )
            hidden = tl.load(
                hidden_ptr + row[None, :] * hidden_stride + first + lane[:, None],
                mask=(row < rows)[None, :] & (first + lane < k)[:, None],
                other=0.0,
            )
            total += tl.dot(weight, hidden)
        tl.store(
            logits_ptr + row[None, :] * logits_stride + at[:, None],
            total.to(logits_ptr.dtype.element_ty),
            mask=(at < n)[:, None] & (row < rows)[None, :],
        )


def settle(
    logits: torch.Tensor,
    hidden: torch.Tensor,
    weight: torch.Tensor,
    planes: Planes,
    found: torch.Tensor,
    listed: torch.Tensor,
) -> None:
    """Make each row's largest logit, and all that might be, the original weight's. Nothing waits for the GPU.

    Args:
        logits: BF16 ``[rows, n]`` of the copy; written. Those that cannot be the largest stay below it.
        hidden: BF16 ``[rows, k]``, of the final norm.
        weight: BF16 ``[n, k]``, contiguous.
        planes: of this weight and the copy.
        found: int32 ``[1]``: then how many tokens were listed.
        listed: int32 ``[most]``: room for ``row * n + token``. If more are found, all logits are the weight's.
    """
    rows, (n, k), most = len(hidden), weight.shape, len(listed)
    group, groups = planes.group, k // planes.group
    best = logits.argmax(dim=-1)
    state = torch.empty(rows, groups + _HEADER, dtype=torch.float32, device=hidden.device)
    row_block = max(_LEAST_ROWS, triton.next_power_of_2(rows))
    # The stride of a single row may be any number, and Triton compiles another kernel for an odd one.
    strides = (logits.stride(0), hidden.stride(0)) if rows > 1 else (n, k)
    block = triton.next_power_of_2(k)
    tiles = triton.cdiv(n, _TILE)
    _launch(
        _begin, rows, (best, hidden, weight, state, found), (strides[1],),
        (groups, group, triton.next_power_of_2(groups)),
    )  # fmt: skip
    _launch(
        _refine, tiles,
        (logits, hidden, planes.words, planes.scales, planes.far, planes.near, state, found, listed),
        (n, rows, *strides, most), (groups, group, _TILE, row_block),
    )  # fmt: skip
    _launch(
        _recompute, _PROGRAMS, (logits, hidden, weight, found, listed), (n, *strides, most),
        (k, block, _PROGRAMS),
    )  # fmt: skip
    _launch(
        _whole, tiles, (logits, hidden, weight, found), (n, rows, *strides, most), (k, _TILE, row_block, 64),
    )  # fmt: skip


def _launch(
    kernel: Any,
    programs: int,
    tensors: tuple[torch.Tensor, ...],
    numbers: tuple[int, ...],
    constants: tuple[int, ...],
) -> None:
    kind = (
        id(kernel), constants, tensors[0].device,
        *(tensor.data_ptr() % 16 == 0 for tensor in tensors), *(number % 16 == 0 for number in numbers),
    )  # fmt: skip
    known = _kernels.get(kind)
    if known is not None:
        known[(programs, 1, 1)](*tensors, *numbers, *constants)
        return
    compiled = kernel[(programs, 1, 1)](*tensors, *numbers, *constants, num_warps=_WARPS, num_stages=_STAGES)
    # Triton's interpreter returns none.
    if hasattr(compiled, "function"):
        _kernels[kind] = compiled
