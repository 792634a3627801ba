"""The lists vLLM chooses its mixed-precision linear kernels from, and the weights it hands to one.

Changes: our kernel goes to the head of ``_POSSIBLE_KERNELS[platform]``, and into ``_LINEAR_BACKEND_KERNEL_MAP``.
Why: the public ``register_linear_kernel`` only appends, which is the lowest priority.
Versions: 0.19.1 to 0.33.0; the map by backend came in 0.22.
Checks: the platform has a list; vLLM's own choice is asked through ``choose_mp_linear_kernel``.
May go: when ``register_linear_kernel`` takes a priority.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from vllm_qwen36_plugin.errors import CompatError

if TYPE_CHECKING:
    import torch


def offer_first(platform: str, kernel: type, backends: tuple[str, ...] = ()) -> None:
    """Put a mixed-precision kernel ahead of all others on a platform (``"CPU"``, ``"CUDA"``). Idempotent.

    ``backends``: values of ``--linear-backend`` (0.22 and later) that must not filter it out.

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
    """Return the kernel that vLLM chooses for an ``MPLinearLayerConfig``; None if no kernel takes it.

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


def in_gptq_layout(packed: Any, scales: Any) -> tuple[torch.Tensor, torch.Tensor]:
    """Return vLLM's two parameters as GPTQ has them, ``[k * bits / 32, n]`` and ``[groups, n]``.

    compressed-tensors has both transposed.
    """
    words = packed.data.t() if packed.input_dim == 1 else packed.data
    return words, scales.data.t() if scales.output_dim == 0 else scales.data
