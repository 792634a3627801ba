"""Gemma's RMS norm with its output in the order of the rows behind it: one Triton kernel, one token a program.

Each input is read once, and so is the order, which depends on nothing. The permutation is `tl.gather` on the
rounded result. Triton compiles that to a store of 16 bytes a thread to shared memory, a barrier, and a load of two
bytes a value (16 KiB for 5,120 values; no spills, every global access of 16 bytes:
tests/act_order/test_norm_kernel.py).
Inductor's own kernel for a gather behind a norm reads x, residual and weight a second time, by address.
"""

from __future__ import annotations

from typing import Any

import torch
import triton
import triton.language as tl

# Warps of a program. The block is 8,192 wide for 5,120 values, and only whole rounds of 8 values a thread beyond
# them are skipped: 2,750 instructions at 4 warps, 3,650 at 8, 5,500 at 16, 6,900 at 32 (sm_90, all warps). At 4
# each scheduler has one warp, and nothing to run while that waits. Timed on an H100, neither 4 nor 16 is faster
# (bench/act_order).
WARPS = 8
# Kernels that Triton has compiled: its own look-up takes 60 µs a launch (see prefill/expand.py), twice a layer.
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
    """Compute token ``program_id``; round where vLLM does: the sum as it is stored, the product as it is stored."""
    token = tl.program_id(0).to(tl.int64)
    at = tl.arange(0, block)
    inside = at < k
    order = tl.load(order_ptr + at, mask=inside, other=0)
    weight = tl.load(weight_ptr + at, mask=inside, other=0.0).to(tl.float32)
    x = tl.load(x_ptr + token * x_stride + at, mask=inside, other=0.0).to(tl.float32)
    if add:
        x += tl.load(residual_ptr + token * residual_stride + at, mask=inside, other=0.0).to(tl.float32)
        tl.store(total_ptr + token * k + at, x.to(total_ptr.dtype.element_ty), mask=inside)
    scale = tl.rsqrt(tl.sum(x * x, axis=0) / k + eps)
    out = (x * scale * (weight + 1.0)).to(out_ptr.dtype.element_ty)
    tl.store(out_ptr + token * k + at, tl.gather(out, order, 0), mask=inside)


def launch(
    x: torch.Tensor,
    residual: torch.Tensor | None,
    weight: torch.Tensor,
    order: torch.Tensor,
    eps: float,
    *,
    warps: int = WARPS,
) -> tuple[torch.Tensor, torch.Tensor | None]:
    """Compute the norm of ``x + residual`` in ``order``, and that sum; without a residual that of ``x``, and None.

    Args:
        x: ``[M, k]`` in BF16, FP16 or float32, tokens any distance apart.
        residual: as ``x``, or None.
        weight: ``[k]``, to which 1 is added; contiguous, of any of these types.
        order: int32 ``[k]``, contiguous: which column goes to each place.
        eps: added to the mean square.

    Returns:
        Two ``[M, k]`` of x's type, contiguous.
    """
    tokens, k = x.shape
    out = x.new_empty(tokens, k)
    total = None if residual is None else x.new_empty(tokens, k)
    if not tokens:
        return out, total
    x = x if x.stride(1) == 1 else x.contiguous()
    second = x
    if residual is not None:
        second = residual if residual.stride(1) == 1 else residual.contiguous()
    tensors = (x, second, weight, order, out, out if total is None else total)
    # The stride of a single token may be any number, and Triton compiles another kernel for an odd one.
    strides = (x.stride(0), second.stride(0)) if tokens > 1 else (k, k)
    constants = (k, triton.next_power_of_2(k), residual is not None)
    aligned = tuple(tensor.data_ptr() % 16 == 0 for tensor in tensors)
    types = (x.dtype, second.dtype, weight.dtype, x.device)
    kind = (*constants, *types, *aligned, *(stride % 16 == 0 for stride in strides), warps)
    kernel = _kernels.get(kind)
    if kernel is not None:
        kernel[(tokens, 1, 1)](*tensors, *strides, eps, *constants)
        return out, total
    compiled = _norm[(tokens, 1, 1)](*tensors, *strides, eps, *constants, num_warps=warps)
    # Triton's interpreter returns none.
    if hasattr(compiled, "function"):
        _kernels[kind] = compiled
    return out, total
