"""128 columns of GPTQ's sweep in one Triton kernel: quantize a column, spread its error over those behind it.

The arithmetic of gptqmodel's eager loop, and of the CUDA kernel it builds where there is a compiler: the same
operations in the same order, each rounded by itself (no fused multiply-add, divisions as IEEE has them).
"""

# ruff: noqa: N803 - Triton's constants are in capitals.

from __future__ import annotations

import torch
import triton
import triton.language as tl

WIDTH = 128
# Rows of a program: four columns of each in every thread of a warp. Nothing but registers is between the columns.
_ROWS = 4
# Adding it to a number of less than 2**22 rounds that to an integer, ties to even.
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
    rows,
    work_stride,
    hinv_stride,
    hinv_stride_column,
    scale_stride,
    zero_stride,
    quantized_stride,
    errors_stride,
    losses_stride,
    maxq,
    ROWS: tl.constexpr,
    WIDTH: tl.constexpr,
):
    row = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    column = tl.arange(0, WIDTH)
    inside = row < rows
    both = inside[:, None] & (column[None, :] >= 0)
    row64 = row.to(tl.int64)[:, None]
    value = tl.load(work_ptr + row64 * work_stride + column[None, :], mask=both, other=0.0)
    quantized = tl.zeros((ROWS, WIDTH), tl.float32)
    errors = tl.zeros((ROWS, WIDTH), tl.float32)
    losses = tl.zeros((ROWS, WIDTH), tl.float32)
    for pivot in range(WIDTH):
        here = column[None, :] == pivot
        group = tl.load(group_ptr + pivot)
        scale = tl.load(scale_ptr + group * scale_stride + row, mask=inside, other=1.0)
        zero = tl.load(zero_ptr + group * zero_stride + row, mask=inside, other=0.0)
        diagonal = tl.load(hinv_ptr + pivot * hinv_stride + pivot * hinv_stride_column)
        weight = tl.sum(tl.where(here, value, 0.0), axis=1)
        steps = tl.div_rn(weight, scale)
        near = tl.minimum(tl.maximum(steps, -_FAR), _FAR)
        code = tl.minimum(tl.maximum((near + _ROUND) - _ROUND + zero, 0.0), maxq)
        # As torch.clamp, and unlike a minimum on a GPU: what is no number stays none.
        code = tl.where(steps == steps, code, steps)
        found = scale * (code - zero)
        rest = weight - found
        error = tl.div_rn(rest, diagonal + tl.zeros_like(rest))
        loss = tl.div_rn(rest * rest, diagonal * diagonal + tl.zeros_like(rest))
        quantized = tl.where(here, found[:, None], quantized)
        errors = tl.where(here, error[:, None], errors)
        losses = tl.where(here, loss[:, None], losses)
        line = tl.load(hinv_ptr + pivot * hinv_stride + column * hinv_stride_column)
        value = tl.where(column[None, :] >= pivot, value - error[:, None] * line[None, :], value)
    tl.store(work_ptr + row64 * work_stride + column[None, :], value, mask=both)
    tl.store(quantized_ptr + row64 * quantized_stride + column[None, :], quantized, mask=both)
    tl.store(errors_ptr + row64 * errors_stride + column[None, :], errors, mask=both)
    tl.store(losses_ptr + row64 * losses_stride + column[None, :], losses, mask=both)


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
    """gptqmodel's ``gptq_block_update``: fills ``quantized``, ``errors``, ``losses``, updates ``work``.

    All FP32 ``[rows, 128]`` with adjacent columns, on one device, but ``hinv`` ``[128, 128]`` of any strides,
    ``scale`` and ``zero`` ``[groups, rows]`` with adjacent rows and ``column_group`` int32 ``[128]``.

    Raises:
        ValueError: shapes or strides are others.
    """
    rows = work.shape[0]
    dense = (work, quantized, errors, losses)
    fits = (
        all(t.shape == (rows, WIDTH) and t.stride(1) == 1 for t in dense)
        and hinv.shape == (WIDTH, WIDTH)
        and scale.shape == zero.shape
        and all(t.shape[1] == rows and t.stride(1) == 1 for t in (scale, zero))
        and column_group.shape == (WIDTH,)
        and column_group.is_contiguous()
        and all(t.dtype == torch.float32 for t in (*dense, hinv, scale, zero))
    )
    if not fits:
        raise ValueError(
            "tensors of a block of GPTQ's sweep have other shapes, strides or types than expected"
        )
    _update[(triton.cdiv(rows, _ROWS),)](
        work, hinv, scale, zero, column_group, quantized, errors, losses,
        rows, work.stride(0), hinv.stride(0), hinv.stride(1), scale.stride(0), zero.stride(0),
        quantized.stride(0), errors.stride(0), losses.stride(0), float(maxq),
        ROWS=_ROWS, WIDTH=WIDTH, num_warps=1, enable_fp_fusion=False,
    )  # fmt: skip
