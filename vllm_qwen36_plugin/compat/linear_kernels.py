"""The lists vLLM chooses linear kernels from. Its public ``register_linear_kernel`` only appends."""

from __future__ import annotations

from vllm_qwen36_plugin.errors import CompatError


def offer_first(platform: str, kernel: type) -> None:
    """Put a mixed-precision kernel ahead of all others on a platform (``"CPU"``, ``"CUDA"``). Idempotent.

    Raises:
        CompatError: the lists are not where they were in vLLM 0.19.1 to 0.33.0.
    """
    try:
        from vllm.model_executor.kernels import linear
        from vllm.platforms import PlatformEnum
    except ImportError as error:
        raise CompatError(f"vLLM's linear kernels cannot be imported: {error}") from error
    lists = getattr(linear, "_POSSIBLE_KERNELS", None)
    member = getattr(PlatformEnum, platform, None)
    if not isinstance(lists, dict) or not isinstance(lists.get(member), list):
        raise CompatError(f"vllm.model_executor.kernels.linear._POSSIBLE_KERNELS has no list for {platform}")
    if kernel not in lists[member]:
        lists[member].insert(0, kernel)
