"""A linear kernel that unpacks int4 and int8 once, at load, and multiplies in the activation dtype."""

from __future__ import annotations

from typing import Any

import torch
from vllm.model_executor.kernels.linear.mixed_precision.MPLinearKernel import MPLinearKernel
from vllm.scalar_type import scalar_types

from gptq_hybrid.packing import dequantize_symmetric
from vllm_qwen36_plugin.upstream.gptq_types import allow_weight_type
from vllm_qwen36_plugin.upstream.linear_kernels import in_gptq_layout, offer_first

# Symmetric types, stored with a bias of half their range.
_BITS = {scalar_types.uint4b8: 4, scalar_types.uint8b128: 8}


def offer() -> None:
    """Offer the kernel to vLLM ahead of its own, and have 8 bits reach it. Idempotent.

    Raises:
        CompatError: vLLM's lists of kernels, or its question about weight types, are not where they were.
    """
    offer_first("CPU", DequantizedLinearKernel)
    allow_weight_type(scalar_types.uint8b128)


def stock_gemm_missing() -> bool:
    """Whether this process's vLLM library lacks the int4 GEMM."""
    return not hasattr(torch.ops._C, "cpu_gemm_wna16")


class DequantizedLinearKernel(MPLinearKernel):  # type: ignore[misc]
    """Symmetric 4- and 8-bit GPTQ weights as a dense matrix: 4 × and 2 × the memory, any CPU.

    Serves 4 bits where vLLM's library lacks its own kernel, and 8 bits on every CPU: vLLM's takes 4 alone (read in
    0.32.0).
    """

    @classmethod
    def get_min_capability(cls) -> int:
        return -1

    @classmethod
    def can_implement(cls, c: Any) -> tuple[bool, str | None]:
        if c.weight_type not in _BITS or c.zero_points or getattr(c, "has_g_idx", False):
            return False, "symmetric 4- and 8-bit weights with contiguous groups only"
        if _BITS[c.weight_type] == 4 and not stock_gemm_missing():
            return False, "vLLM's own int4 GEMM is there"
        return True, None

    def process_weights_after_loading(self, layer: torch.nn.Module) -> None:
        """Replace the packed weight by its dense form; the scales are folded in."""
        words, scales = in_gptq_layout(getattr(layer, self.w_q_name), getattr(layer, self.w_s_name))
        dense = dequantize_symmetric(words, scales, _BITS[self.config.weight_type]).to(self.config.act_type)
        setattr(layer, self.w_q_name, torch.nn.Parameter(dense, requires_grad=False))

    def apply_weights(
        self, layer: torch.nn.Module, x: torch.Tensor, bias: torch.Tensor | None = None
    ) -> torch.Tensor:
        return torch.nn.functional.linear(x, getattr(layer, self.w_q_name), bias)
