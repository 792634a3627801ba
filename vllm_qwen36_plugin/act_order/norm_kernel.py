"""Gemma's RMS norm with its output in the order of the rows behind it: one Triton kernel, one row a program.

Each input is read once, along with the order, which depends on nothing; the permutation is `tl.gather` on the
rounded result. Triton makes of that a store of 16 bytes a thread to shared memory, a barrier, and a load of two
bytes a value (16 KiB for 5,120 values; no spills, every global access of 16 bytes: test_act_order_norm_kernel).
Inductor's own kernel for a gather behind a norm reads x, residual and weight a second time, by address.
"""

from __future__ import annotations

from typing import Any

import torch
import triton
import triton.language as tl

# Of a program. The block is 8,192 wide for 5,120 values, and what lies beyond them is left out by whole rounds of
# 8 values a thread only: 2,750 instructions at 4 warps, 3,650 at 8, 5,500 at 16, 6,900 at 32 (sm_90, all warps). At
# 4 each scheduler has one warp, with nothing to run while that waits. Timed on an H100, neither 4 nor 16 is faster
# (bench/act_order).
WARPS = 8
# What Triton has compiled: its own look-up takes 60 µs a launch (see prefill/expand.py), twice a layer.
_kernels: dict[tuple[Any, ...], Any] = {}


@triton.jit  # type: ignore[untyped-decorator, unused-ignore]
def _norm(  # type: ignore[no-untyped-def]
    x_ptr,
    residual_ptr,
    weight_ptr,
    order_ptr,
    out_ptr,
    total_ptr,
    x_stride,
    residual_stride,
    eps,
    k: tl.constexpr,
    block: tl.constexpr,
    add: tl.constexpr,
):
    """Row ``program_id``; rounds where vLLM does: the sum as it is stored, the product as it is stored."""
    row = tl.program_id(0).to(tl.int64)
    at = tl.arange(0, block)
    inside = at < k
    order = tl.load(order_ptr + at, mask=inside, other=0)
    weight = tl.load(weight_ptr + at, mask=inside, other=0.0).to(tl.float32)
    x = tl.load(x_ptr + row * x_stride + at, mask=inside, other=0.0).to(tl.float32)
    if add:
        x += tl.load(residual_ptr + row * residual_stride + at, mask=inside, other=0.0).to(tl.float32)
        tl.store(total_ptr + row * k + at, x.to(total_ptr.dtype.element_ty), mask=inside)
    scale = tl.rsqrt(tl.sum(x * x, axis=0) / k + eps)
    out = (x * scale * (weight + 1.0)).to(out_ptr.dtype.element_ty)
    tl.store(out_ptr + row * k + at, tl.gather(out, order, 0), mask=inside)


def launch(
    x: torch.Tensor,
    residual: torch.Tensor | None,
    weight: torch.Tensor,
    order: torch.Tensor,
    eps: float,
    *,
    warps: int = WARPS,
) -> tuple[torch.Tensor, torch.Tensor | None]:
    """The norm of ``x + residual`` in ``order``, and that sum; of ``x`` alone, and None, without a residual.

    Args:
        x: ``[M, k]`` in BF16, FP16 or float32, rows any distance apart.
        residual: as ``x``, or None.
        weight: ``[k]``, to which 1 is added; contiguous, of any of these types.
        order: int32 ``[k]``, contiguous: which column goes to each place.
        eps: added to the mean square.

    Returns:
        Two ``[M, k]`` of x's type, contiguous.
    """
    rows, k = x.shape
    out = x.new_empty(rows, k)
    total = None if residual is None else x.new_empty(rows, k)
    if not rows:
        return out, total
    x = x if x.stride(1) == 1 else x.contiguous()
    second = x
    if residual is not None:
        second = residual if residual.stride(1) == 1 else residual.contiguous()
    tensors = (x, second, weight, order, out, out if total is None else total)
    # The stride of a single row may be any number, and Triton compiles another kernel for an odd one.
    strides = (x.stride(0), second.stride(0)) if rows > 1 else (k, k)
    constants = (k, triton.next_power_of_2(k), residual is not None)
    aligned = tuple(tensor.data_ptr() % 16 == 0 for tensor in tensors)
    types = (x.dtype, second.dtype, weight.dtype, x.device)
    kind = (*constants, *types, *aligned, *(stride % 16 == 0 for stride in strides), warps)
    kernel = _kernels.get(kind)
    if kernel is not None:
        kernel[(rows, 1, 1)](*tensors, *strides, eps, *constants)
        return out, total
    found = _norm[(rows, 1, 1)](*tensors, *strides, eps, *constants, num_warps=warps)
    if hasattr(found, "function"):
        _kernels[kind] = found
    return out, total
