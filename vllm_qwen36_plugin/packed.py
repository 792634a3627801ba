"""Weights as GPTQ stores them, made dense."""

from __future__ import annotations

from typing import Any

import torch


def dequantize_words(packed: torch.Tensor, scales: torch.Tensor, bits: int) -> torch.Tensor:
    """Weights of a symmetric GPTQ linear with contiguous groups.

    Args:
        packed: int32 ``[in_features * bits / 32, out_features]``, lowest bits first, biased by ``2**(bits-1)``.
        scales: ``[groups, out_features]``.
        bits: 4 or 8.

    Returns:
        ``[out_features, in_features]`` in the dtype of ``scales``: one product in float32, rounded once.
    """
    shifts = torch.arange(0, 32, bits, dtype=torch.int32, device=packed.device)
    values = (packed[:, None, :] >> shifts[None, :, None]) & ((1 << bits) - 1)
    values = values.reshape(-1, packed.shape[1]) - (1 << (bits - 1))
    rows = values.shape[0] // scales.shape[0]
    return (values * scales.float().repeat_interleave(rows, dim=0)).t().contiguous().to(scales.dtype)


def as_gptq(packed: Any, scales: Any) -> tuple[torch.Tensor, torch.Tensor]:
    """What vLLM loaded as ``[in / lanes, out]`` and ``[groups, out]``; compressed-tensors has both transposed."""
    words = packed.data.t() if packed.input_dim == 1 else packed.data
    factors = scales.data.t() if scales.output_dim == 0 else scales.data
    return words, factors
