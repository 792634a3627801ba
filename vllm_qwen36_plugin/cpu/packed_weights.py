"""A linear kernel that unpacks int4 and int8 once, at load, and multiplies in the activation dtype."""

from __future__ import annotations

from typing import Any

import torch
from vllm.model_executor.kernels.linear.mixed_precision.MPLinearKernel import MPLinearKernel
from vllm.scalar_type import scalar_types

from vllm_qwen36_plugin.packed import as_gptq, dequantize_words

# Symmetric types, stored with a bias of half their range.
_TYPES = {scalar_types.uint4b8: 4, scalar_types.uint8b128: 8}


def stock_gemm_missing() -> bool:
    """Whether this process's vLLM library lacks the int4 GEMM."""
    return not hasattr(torch.ops._C, "cpu_gemm_wna16")


class DequantizedLinearKernel(MPLinearKernel):  # type: ignore[misc]
    """Symmetric 4- and 8-bit GPTQ weights as a dense matrix: 4 × and 2 × the memory, any CPU.

    Serves 4 bits where vLLM's own kernel is not in its library, and 8 bits on every CPU: vLLM's takes 4 alone
    (read in 0.32.0).
    """

    @classmethod
    def get_min_capability(cls) -> int:
        return -1

    @classmethod
    def can_implement(cls, c: Any) -> tuple[bool, str | None]:
        if c.weight_type not in _TYPES or c.zero_points or getattr(c, "has_g_idx", False):
            return False, "symmetric 4- and 8-bit weights with contiguous groups only"
        if _TYPES[c.weight_type] == 4 and not stock_gemm_missing():
            return False, "vLLM's own int4 GEMM is there"
        return True, None

    def process_weights_after_loading(self, layer: torch.nn.Module) -> None:
        """Replace the packed weight by its dense form; the scales are folded in."""
        words, factors = as_gptq(getattr(layer, self.w_q_name), getattr(layer, self.w_s_name))
        dense = dequantize_words(words, factors, _TYPES[self.config.weight_type]).to(self.config.act_type)
        setattr(layer, self.w_q_name, torch.nn.Parameter(dense, requires_grad=False))

    def apply_weights(
        self, layer: torch.nn.Module, x: torch.Tensor, bias: torch.Tensor | None = None
    ) -> torch.Tensor:
        return torch.nn.functional.linear(x, getattr(layer, self.w_q_name), bias)
