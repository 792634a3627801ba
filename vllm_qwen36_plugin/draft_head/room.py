"""Whether a copy of the whole output head is worth its memory on this card."""

from __future__ import annotations

from typing import Any

import torch

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
