"""A linear kernel that unpacks int4 once, at load, and multiplies in the activation dtype."""

from __future__ import annotations

from typing import Any

import torch
from vllm.model_executor.kernels.linear.mixed_precision.MPLinearKernel import MPLinearKernel
from vllm.scalar_type import scalar_types


def stock_gemm_missing() -> bool:
    """Whether this process's vLLM library lacks the int4 GEMM."""
    return not hasattr(torch.ops._C, "cpu_gemm_wna16")


def dequantize_int4(packed: torch.Tensor, scales: torch.Tensor) -> torch.Tensor:
    """Weights of a symmetric GPTQ linear with contiguous groups.

    Args:
        packed: int32 ``[in_features / 8, out_features]``, eight values a word, lowest bits first, biased by 8.
        scales: ``[groups, out_features]``.

    Returns:
        ``[out_features, in_features]`` in the dtype of ``scales``.
    """
    shifts = torch.arange(0, 32, 4, dtype=torch.int32, device=packed.device)
    values = (packed[:, None, :] >> shifts[None, :, None]) & 15
    values = values.reshape(-1, packed.shape[1]) - 8
    rows = values.shape[0] // scales.shape[0]
    return (values * scales.float().repeat_interleave(rows, dim=0)).t().contiguous().to(scales.dtype)


class DequantizedInt4LinearKernel(MPLinearKernel):  # type: ignore[misc]
    """Symmetric 4-bit GPTQ weights as a dense matrix: 4 × the memory, any CPU."""

    @classmethod
    def get_min_capability(cls) -> int:
        return -1

    @classmethod
    def can_implement(cls, c: Any) -> tuple[bool, str | None]:
        if not stock_gemm_missing():
            return False, "vLLM's own int4 GEMM is there"
        if c.weight_type != scalar_types.uint4b8 or c.zero_points or getattr(c, "has_g_idx", False):
            return False, "symmetric 4-bit weights with contiguous groups only"
        return True, None

    def process_weights_after_loading(self, layer: torch.nn.Module) -> None:
        """Replace the packed weight by its dense form; the scales are folded in."""
        packed, scales = getattr(layer, self.w_q_name), getattr(layer, self.w_s_name)
        # As in vLLM's own kernel: compressed-tensors stores both transposed.
        words = packed.data.t() if packed.input_dim == 1 else packed.data
        factors = scales.data.t() if scales.output_dim == 0 else scales.data
        dense = dequantize_int4(words, factors).to(self.config.act_type)
        setattr(layer, self.w_q_name, torch.nn.Parameter(dense, requires_grad=False))

    def apply_weights(
        self, layer: torch.nn.Module, x: torch.Tensor, bias: torch.Tensor | None = None
    ) -> torch.Tensor:
        return torch.nn.functional.linear(x, getattr(layer, self.w_q_name), bias)
