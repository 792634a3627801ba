"""Compare a weight in fewer bits with the dense one: wrong drafts cost speed and show nowhere else."""

from __future__ import annotations

from collections.abc import Callable

import torch

from vllm_qwen36_plugin.prefill.dispatch import trial

from .settings import Precision

_TOKENS = 4
# Shares of the result's size. Rounding a normally distributed weight makes 0.006 in 8 bits, 0.026 in e4m3, and
# 0.08 in 4 bits and groups of 32. If one weight of a group is six times as large, it makes at most two thirds of
# these limits. Scales, zero points or an order that are read wrongly make more. All of this is in
# tests/draft_head/test_selftest.py.
LIMITS: dict[Precision, float] = {"w8": 0.05, "fp8": 0.15, "w4": 0.35}


def require_agreement(
    dense: torch.Tensor, multiply: Callable[[torch.Tensor], torch.Tensor], precision: Precision
) -> None:
    """Compare a few products.

    Args:
        dense: the weight, ``[n, k]``, BF16 or FP16.
        multiply: ``[tokens, k]`` to ``[tokens, n]`` with what was made of it.
        precision: of what was made; its limit is in :data:`LIMITS`.

    Raises:
        ValueError: they differ by more than ``precision`` explains.
    """
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(_TOKENS, dense.shape[1], generator=generator).to(dense.device, dense.dtype)
    expected = torch.nn.functional.linear(x, dense).float()
    with trial():
        error = float((multiply(x).float() - expected).norm())
    size = float(expected.norm())
    # Not "greater than": a NaN is to fail too.
    if not error <= LIMITS[precision] * size:
        share = error / size if size else float("inf")
        raise ValueError(
            f"its results are off by {share:.2f} of their size, and {LIMITS[precision]} is the limit"
        )
