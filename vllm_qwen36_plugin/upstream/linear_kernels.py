"""The lists vLLM chooses linear kernels from. Its public ``register_linear_kernel`` only appends."""

from __future__ import annotations

from typing import Any

from vllm_qwen36_plugin.errors import CompatError


def offer_first(platform: str, kernel: type, backends: tuple[str, ...] = ()) -> None:
    """Put a mixed-precision kernel ahead of all others on a platform (``"CPU"``, ``"CUDA"``). Idempotent.

    ``backends``: values of ``--linear-backend`` (0.22 and later) that it is not to be sorted out by.

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
    by_backend = getattr(linear, "_LINEAR_BACKEND_KERNEL_MAP", {})
    for backend in backends:
        if backend in by_backend:
            by_backend[backend].add(kernel)


def stock_choice(config: Any) -> type | None:
    """The kernel vLLM chooses for an ``MPLinearLayerConfig``; None where no kernel takes it.

    Raises:
        CompatError: the function is not where it was in vLLM 0.19.1 to 0.33.0.
    """
    try:
        from vllm.model_executor.kernels.linear import choose_mp_linear_kernel
    except ImportError as error:
        raise CompatError(f"vLLM's choice of a linear kernel cannot be imported: {error}") from error
    try:
        return choose_mp_linear_kernel(config)  # type: ignore[no-any-return]
    except ValueError:
        return None
