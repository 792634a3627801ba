"""Whether a copy of the whole output head is worth its memory, and up to how many positions it is faster."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import torch

from vllm_qwen36_plugin.prefill.dispatch import trial
from vllm_qwen36_plugin.prefill.measure import MARGIN, in_turns

Calls = Mapping[str, Callable[[], object]]
# Numbers of positions that are timed. Up to the last a head is read from memory for longer than it is multiplied,
# in 16 bits too: the 27B's takes 0.5 ms to read on an H200 and 0.2 to multiply, 2.9 and 0.9 on an L40S (derived
# from published rates). Beyond, packed kernels gain less and may lose.
POSITIONS = (1, 4, 16, 32, 64)

# What vLLM takes besides weights before it counts the KV cache: activations of a full chunk and CUDA graphs. An
# estimate for the 27B; a wrong one moves the limit by that much of the cache.
_TO_RUN = 3 << 29


def copied_by_vllm(vllm_config: Any) -> bool:
    """Whether vLLM (from 0.33 on) makes a copy of the output head for drafts, as the user asked it to."""
    config = vllm_config.speculative_config
    return getattr(config, "draft_lm_head_quantization", None) is not None


def share_of_cache(extra: int, vllm_config: Any) -> float:
    """Return the share of the KV cache that ``extra`` bytes take, once all weights are on the GPU.

    vLLM gives the cache what `gpu_memory_utilization` allows of the card's memory, less what is in use. Memory that
    PyTorch holds and does not use counts as free, as vLLM returns it before it counts. Infinity where nothing is
    left; 0 where ``extra`` is not more than nothing.
    """
    if extra <= 0:
        return 0.0
    free, total = torch.cuda.mem_get_info()
    free += torch.cuda.memory_reserved() - torch.cuda.memory_allocated()
    cache = vllm_config.cache_config
    left = free - total * (1 - cache.gpu_memory_utilization) - _TO_RUN
    fixed = getattr(cache, "kv_cache_memory_bytes", None)
    if fixed is not None:
        # The user's number stands, whatever else is on the card: the copy costs nothing of it, or does not fit.
        return 0.0 if free - fixed - _TO_RUN >= extra else float("inf")
    return extra / left if left > 0 else float("inf")


def wins_up_to(
    copy: Callable[[torch.Tensor], torch.Tensor],
    weight: torch.Tensor,
    timed: Callable[[Calls], Mapping[str, float]] | None = None,
) -> int:
    """Time ``copy`` against the head's own ``weight`` ``[n, k]``: return up to how many positions it is faster.

    0 if it is slower even for one. Without a GPU nothing is timed, and a copy is taken to win.

    Args:
        copy: ``[positions, k]`` to ``[positions, n]``.
        weight: in 16 bits.
        timed: microseconds of each call; that of the GPU alone without it.
    """
    if timed is None and weight.device.type != "cuda":
        return POSITIONS[-1]
    won = 0
    with trial():
        for positions in POSITIONS:
            x = sure_states(weight, positions)
            calls = {"copy": partial(copy, x), "own": partial(torch.nn.functional.linear, x, weight)}
            us = (timed or in_turns)(calls)
            if us["copy"] > us["own"] * (1 - MARGIN):
                break
            won = positions
    return won


def sure_states(weight: torch.Tensor, positions: int) -> torch.Tensor:
    """Make hidden states ``[positions, k]`` whose logits are a model's where it is sure: one token stands out.

    By ten standard deviations of the others. On random states many tokens are as likely as the first, and a head
    that verifies would read far more rows of ``weight`` again than a trained model's states have it read.
    """
    rows = weight[torch.arange(positions, device=weight.device) % len(weight)].float()
    sure = rows * (10 / rows.norm(dim=1, keepdim=True).clamp(min=1e-6))
    return (torch.randn(positions, weight.shape[1], device=weight.device) + sure).to(weight.dtype)
