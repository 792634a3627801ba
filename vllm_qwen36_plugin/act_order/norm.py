"""A norm in place of vLLM's that writes its output in the order that the linears behind it read.

`NormInOrder` calls one of two ops, which torch.compile does not look into. On a GPU they launch `norm_kernel`, on a
CPU they compute the same in PyTorch.
"""

from __future__ import annotations

from typing import Any

import torch

NAMESPACE = "qwen36"
# The ops live as long as their library.
_libraries: list[Any] = []


def reference(
    x: torch.Tensor, residual: torch.Tensor | None, weight: torch.Tensor, order: torch.Tensor, eps: float
) -> tuple[torch.Tensor, torch.Tensor]:
    """Compute in PyTorch what the kernel does: vLLM's ``GemmaRMSNorm``, its output taken at ``order``.

    Returns:
        The norm ``[..., k]`` in ``order``, and ``x + residual`` (``x`` without a residual), both of x's type.
    """
    total = x.float() if residual is None else x.float() + residual.float()
    scaled = total * torch.rsqrt(total.pow(2).mean(-1, keepdim=True) + eps)
    out = (scaled * (weight.float() + 1.0)).to(x.dtype)
    return out.index_select(-1, order), total.to(x.dtype)


def norm_in_order(x: torch.Tensor, weight: torch.Tensor, order: torch.Tensor, eps: float) -> torch.Tensor:
    """Compute the RMS norm of ``x`` ``[..., k]`` times ``1 + weight``, its columns in ``order`` (int32 ``[k]``)."""
    if not x.is_cuda:
        return reference(x, None, weight, order, eps)[0].contiguous()
    from .norm_kernel import launch

    return launch(x.reshape(-1, x.shape[-1]), None, weight, order, eps)[0].view(x.shape)


def add_norm_in_order(
    x: torch.Tensor, residual: torch.Tensor, weight: torch.Tensor, order: torch.Tensor, eps: float
) -> tuple[torch.Tensor, torch.Tensor]:
    """Compute the same of ``x + residual``, and that sum in natural order."""
    if not x.is_cuda:
        out, total = reference(x, residual, weight, order, eps)
        return out.contiguous(), total.contiguous()
    from .norm_kernel import launch

    k = x.shape[-1]
    out, summed = launch(x.reshape(-1, k), residual.reshape(-1, k), weight, order, eps)
    assert summed is not None
    return out.view(x.shape), summed.view(x.shape)


def _fake_norm(x: torch.Tensor, weight: torch.Tensor, order: torch.Tensor, eps: float) -> torch.Tensor:
    return x.new_empty(x.shape)


def _fake_add_norm(
    x: torch.Tensor, residual: torch.Tensor, weight: torch.Tensor, order: torch.Tensor, eps: float
) -> tuple[torch.Tensor, torch.Tensor]:
    return x.new_empty(x.shape), x.new_empty(x.shape)


def register_ops() -> None:
    """Register both ops with torch, for the platform that vLLM runs on. Idempotent."""
    if hasattr(getattr(torch.ops, NAMESPACE), "norm_in_order"):
        return
    from vllm.utils.torch_utils import direct_register_custom_op

    library = torch.library.Library(NAMESPACE, "FRAGMENT")
    direct_register_custom_op("norm_in_order", norm_in_order, fake_impl=_fake_norm, target_lib=library)
    direct_register_custom_op(
        "add_norm_in_order", add_norm_in_order, fake_impl=_fake_add_norm, target_lib=library
    )
    _libraries.append(library)


class NormInOrder(torch.nn.Module):  # type: ignore[misc]
    """Takes the place of a ``GemmaRMSNorm``, with its weight; called as vLLM's decoder layer calls that."""

    def __init__(self, weight: torch.nn.Parameter, eps: float, order: torch.Tensor) -> None:
        super().__init__()
        register_ops()
        self.weight = weight
        self.variance_epsilon = eps
        self.register_buffer("order", order.to(torch.int32).contiguous(), persistent=False)

    def forward(
        self, x: torch.Tensor, residual: torch.Tensor | None = None
    ) -> torch.Tensor | tuple[torch.Tensor, torch.Tensor]:
        """Return the norm of ``x`` ``[..., k]`` in order; with a residual, that of the sum, and the sum."""
        if residual is None:
            return torch.ops.qwen36.norm_in_order.default(x, self.weight, self.order, self.variance_epsilon)
        return torch.ops.qwen36.add_norm_in_order.default(
            x, residual, self.weight, self.order, self.variance_epsilon
        )
