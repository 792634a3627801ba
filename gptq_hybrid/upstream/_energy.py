"""The squared output of a linear on its calibration data, from its weight and its Hessian."""

from __future__ import annotations

from functools import cache
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch

_CHANNELS, _COLUMNS = 1024, 2048


def energy(weight: torch.Tensor, hessian: torch.Tensor, less: torch.Tensor | None = None) -> float:
    """tr(X H Xᵀ) with X = ``weight`` - ``less``, in float32 products and a float64 sum.

    A BF16 weight on a GPU is multiplied by tensor cores, with H as a sum of two BF16 parts, which leaves 16 of
    its bits. In float32 it would be 6 TFLOP a layer of the 27B, for a figure that is read to three digits.
    (TF32 would be a setting of all threads, and the sweep of another module may be at work.)

    Args:
        weight: ``[out_features, in_features]``.
        hessian: ``[in_features, in_features]``, FP32.
        less: subtracted from ``weight``; nothing by default.
    """
    import torch

    total = torch.zeros((), dtype=torch.float64, device=hessian.device)
    if (
        less is None
        and weight.dtype == torch.bfloat16
        and weight.is_cuda
        and hessian.is_cuda
        and _has_out_dtype()
    ):
        for start in range(0, hessian.shape[1], _COLUMNS):
            columns = slice(start, start + _COLUMNS)
            parts = in_two_parts(hessian[:, columns])
            for first in range(0, weight.shape[0], _COLUMNS):
                part = weight[first : first + _COLUMNS]
                total += (product(part, *parts) * part[:, columns]).sum(dtype=torch.float64)
        return float(total)
    for start in range(0, weight.shape[0], _CHANNELS):
        part = weight[start : start + _CHANNELS].to(device=hessian.device, dtype=torch.float32)
        if less is not None:
            part = part - less[start : start + _CHANNELS].to(device=hessian.device, dtype=torch.float32)
        total += ((part @ hessian) * part).sum(dtype=torch.float64)
    return float(total)


def in_two_parts(matrix: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Split an FP32 matrix into a sum of two BF16 ones, which keeps 16 bits of it."""
    import torch

    high = matrix.to(torch.bfloat16)
    return high, (matrix - high.float()).to(torch.bfloat16)


def product(weight: torch.Tensor, high: torch.Tensor, low: torch.Tensor) -> torch.Tensor:
    """Multiply a BF16 ``weight`` by a matrix in two BF16 parts; the result is FP32."""
    return _mm(weight, high).add_(_mm(weight, low))


def _mm(left: torch.Tensor, right: torch.Tensor) -> torch.Tensor:
    import torch

    if left.is_cuda:
        return torch.mm(left, right, out_dtype=torch.float32)
    return left.float() @ right.float()


@cache
def _has_out_dtype() -> bool:
    """Whether this PyTorch (2.8 and later) multiplies 16-bit numbers into FP32 ones."""
    import torch

    return "dtype" in torch.ops.aten.mm.overloads()
