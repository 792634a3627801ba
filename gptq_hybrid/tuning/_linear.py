"""A linear of frozen codes whose group scales are trained."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn
from torch.nn import functional

from gptq_hybrid.packing import unpack_words


class GroupedLinear(nn.Module):  # type: ignore[misc]
    """``y = x Wᵀ`` with ``W[o, i] = codes[o, i] · scales[group of i, o]``, groups in natural order.

    The dense weight is made anew for each product, so between layers there are codes of one byte and no more.

    Attributes:
        codes: int8 ``[out_features, in_features]``, without their zero point.
        scales: float32 ``[groups, out_features]``, a leaf that takes gradients.
    """

    codes: torch.Tensor
    scales: torch.Tensor

    def __init__(self, qweight: torch.Tensor, scales: torch.Tensor, bits: int, dtype: torch.dtype) -> None:
        """Unpack ``qweight``, int32 ``[in_features * bits / 32, out_features]``, on the device of ``scales``."""
        super().__init__()
        # A byte holds 0 … 255 before the zero point is taken off, and -128 … 127 after.
        values = unpack_words(qweight.to(scales.device), bits).to(torch.int16) - (1 << (bits - 1))
        self.register_buffer("codes", values.to(torch.int8).t().contiguous(), persistent=False)
        self.register_buffer("scales", scales, persistent=False)
        self.dtype = dtype

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        weight: torch.Tensor = _Dequantize.apply(self.scales, self.codes, self.dtype)
        return functional.linear(inputs, weight)


class _Dequantize(torch.autograd.Function):  # type: ignore[misc]
    """Codes and scales to a dense weight; autograd's own product would keep a float32 copy of the codes."""

    @staticmethod
    def forward(ctx: Any, scales: torch.Tensor, codes: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
        ctx.save_for_backward(codes)
        ctx.groups = scales.shape[0]
        weight = codes.to(dtype).view(codes.shape[0], ctx.groups, -1)
        return (weight * scales.t()[:, :, None].to(dtype)).view_as(codes)

    @staticmethod
    def backward(ctx: Any, *gradients: torch.Tensor) -> tuple[torch.Tensor, None, None]:
        (codes,) = ctx.saved_tensors
        (gradient,) = gradients
        products = (gradient * codes).view(codes.shape[0], ctx.groups, -1)
        return products.sum(-1, dtype=torch.float32).t().contiguous(), None, None
