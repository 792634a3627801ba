"""128 columns of GPTQ's sweep in one Triton kernel: quantize a column, spread its error over those behind it.

The arithmetic is that of gptqmodel's eager loop, and of the CUDA kernel it builds where there is a compiler:
the same operations in the same order, each rounded by itself, without fused multiply-adds and with IEEE
divisions.
"""

# ruff: noqa: N803 - Triton's constants are in capitals.

from __future__ import annotations

import torch
import triton
import triton.language as tl

WIDTH = 128
# Channels of a program: each thread of a warp holds four columns of them, and all stays in registers.
_CHANNELS = 4
# Added to a number below 2**22, it rounds that to an integer, ties to even.
_ROUND = tl.constexpr(12582912.0)
_FAR = tl.constexpr(2097152.0)


@triton.jit  # type: ignore[untyped-decorator]
def _update(  # type: ignore[no-untyped-def]
    work_ptr,
    hinv_ptr,
    scale_ptr,
    zero_ptr,
    group_ptr,
    quantized_ptr,
    errors_ptr,
    losses_ptr,
    channels,
    work_stride,
    hinv_stride,
    hinv_stride_column,
    scale_stride,
    zero_stride,
    quantized_stride,
    errors_stride,
    losses_stride,
    maxq,
    CHANNELS: tl.constexpr,
    WIDTH: tl.constexpr,
):
    channel = tl.program_id(0) * CHANNELS + tl.arange(0, CHANNELS)
    column = tl.arange(0, WIDTH)
    inside = channel < channels
    both = inside[:, None] & (column[None, :] >= 0)
    channel64 = channel.to(tl.int64)[:, None]
    value = tl.load(work_ptr + channel64 * work_stride + column[None, :], mask=both, other=0.0)
    quantized = tl.zeros((CHANNELS, WIDTH), tl.float32)
    errors = tl.zeros((CHANNELS, WIDTH), tl.float32)
    losses = tl.zeros((CHANNELS, WIDTH), tl.float32)
    for pivot in range(WIDTH):
        here = column[None, :] == pivot
        group = tl.load(group_ptr + pivot)
        scale = tl.load(scale_ptr + group * scale_stride + channel, mask=inside, other=1.0)
        zero = tl.load(zero_ptr + group * zero_stride + channel, mask=inside, other=0.0)
        diagonal = tl.load(hinv_ptr + pivot * hinv_stride + pivot * hinv_stride_column)
        weight = tl.sum(tl.where(here, value, 0.0), axis=1)
        steps = tl.div_rn(weight, scale)
        near = tl.minimum(tl.maximum(steps, -_FAR), _FAR)
        code = tl.minimum(tl.maximum((near + _ROUND) - _ROUND + zero, 0.0), maxq)
        # NaN stays NaN, as in torch.clamp and unlike in a minimum on a GPU.
        code = tl.where(steps == steps, code, steps)
        value_of_code = scale * (code - zero)
        rest = weight - value_of_code
        error = tl.div_rn(rest, diagonal + tl.zeros_like(rest))
        loss = tl.div_rn(rest * rest, diagonal * diagonal + tl.zeros_like(rest))
        quantized = tl.where(here, value_of_code[:, None], quantized)
        errors = tl.where(here, error[:, None], errors)
        losses = tl.where(here, loss[:, None], losses)
        line = tl.load(hinv_ptr + pivot * hinv_stride + column * hinv_stride_column)
        value = tl.where(column[None, :] >= pivot, value - error[:, None] * line[None, :], value)
    tl.store(work_ptr + channel64 * work_stride + column[None, :], value, mask=both)
    tl.store(quantized_ptr + channel64 * quantized_stride + column[None, :], quantized, mask=both)
    tl.store(errors_ptr + channel64 * errors_stride + column[None, :], errors, mask=both)
    tl.store(losses_ptr + channel64 * losses_stride + column[None, :], losses, mask=both)


def block_update(
    work: torch.Tensor,
    hinv: torch.Tensor,
    scale: torch.Tensor,
    zero: torch.Tensor,
    column_group: torch.Tensor,
    quantized: torch.Tensor,
    errors: torch.Tensor,
    losses: torch.Tensor,
    maxq: int,
) -> None:
    """Do what gptqmodel's ``gptq_block_update`` does: fill ``quantized``, ``errors``, ``losses``, update ``work``.

    All are on one device, and FP32 but for ``column_group``.

    Args:
        work: ``[channels, 128]`` with adjacent columns; so are ``quantized``, ``errors`` and ``losses``.
        hinv: ``[128, 128]``, of any strides.
        scale: ``[groups, channels]`` with adjacent channels; so is ``zero``.
        column_group: ``[128]``, int32: the group of each column.

    Raises:
        ValueError: shapes, strides or types are others.
    """
    channels = work.shape[0]
    dense = (work, quantized, errors, losses)
    fits = (
        all(t.shape == (channels, WIDTH) and t.stride(1) == 1 for t in dense)
        and hinv.shape == (WIDTH, WIDTH)
        and scale.shape == zero.shape
        and all(t.shape[1] == channels and t.stride(1) == 1 for t in (scale, zero))
        and column_group.shape == (WIDTH,)
        and column_group.is_contiguous()
        and all(t.dtype == torch.float32 for t in (*dense, hinv, scale, zero))
    )
    if not fits:
        raise ValueError(
            "tensors of a block of GPTQ's sweep have other shapes, strides or types than expected"
        )
    _update[(triton.cdiv(channels, _CHANNELS),)](
        work, hinv, scale, zero, column_group, quantized, errors, losses,
        channels, work.stride(0), hinv.stride(0), hinv.stride(1), scale.stride(0), zero.stride(0),
        quantized.stride(0), errors.stride(0), losses.stride(0), float(maxq),
        CHANNELS=_CHANNELS, WIDTH=WIDTH, num_warps=1, enable_fp_fusion=False,
    )  # fmt: skip
