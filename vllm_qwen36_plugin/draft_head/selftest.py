"""Whether a weight in fewer bits multiplies as the dense one did: wrong drafts cost speed and show nowhere else."""

from __future__ import annotations

from collections.abc import Callable

import torch

from vllm_qwen36_plugin.prefill.dispatch import trial

from .settings import Form

_ROWS = 4
# Of the result's size. Rounding a normally distributed weight makes 0.006 in 8 bits, 0.026 in e4m3, and 0.08 in
# 4 bits and groups of 32; at most two thirds of these limits where one weight of a group is six times as large;
# scales, zero points or an order that are read wrongly make more (all in tests/drafts/test_selftest.py).
LIMITS: dict[Form, float] = {"w8": 0.05, "fp8": 0.15, "w4": 0.35}


def require_agreement(
    dense: torch.Tensor, multiply: Callable[[torch.Tensor], torch.Tensor], form: Form
) -> None:
    """Compare a few products.

    Args:
        dense: the weight, ``[n, k]``, BF16 or FP16.
        multiply: ``[rows, k]`` to ``[rows, n]`` with what was made of it.
        form: of what was made; its limit is in :data:`LIMITS`.

    Raises:
        ValueError: they differ by more than ``form`` explains.
    """
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(_ROWS, dense.shape[1], generator=generator).to(dense.device, dense.dtype)
    want = torch.nn.functional.linear(x, dense).float()
    with trial():
        error = float((multiply(x).float() - want).norm())
    size = float(want.norm())
    # Not "greater than": a NaN is to fail too.
    if not error <= LIMITS[form] * size:
        share = error / size if size else float("inf")
        raise ValueError(f"its results are off by {share:.2f} of their size, and {LIMITS[form]} is the limit")
