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
    kernels = _kernels(platform)
    if kernel not in kernels:
        kernels.insert(0, kernel)
    from vllm.model_executor.kernels import linear

    by_backend = getattr(linear, "_LINEAR_BACKEND_KERNEL_MAP", {})
    for backend in backends:
        if backend in by_backend:
            by_backend[backend].add(kernel)


def _kernels(platform: str) -> list[Any]:
    try:
        from vllm.model_executor.kernels import linear
        from vllm.platforms import PlatformEnum
    except ImportError as error:
        raise CompatError(f"vLLM's linear kernels cannot be imported: {error}") from error
    lists = getattr(linear, "_POSSIBLE_KERNELS", None)
    member = getattr(PlatformEnum, platform, None)
    if not isinstance(lists, dict) or not isinstance(lists.get(member), list):
        raise CompatError(f"vllm.model_executor.kernels.linear._POSSIBLE_KERNELS has no list for {platform}")
    return lists[member]  # type: ignore[no-any-return]


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


def left_to_vllm() -> bool:
    """Whether the user left the choice of a mixed-precision kernel to vLLM, and has disabled none."""
    from vllm import envs
    from vllm.config import get_current_vllm_config_or_none

    config = getattr(get_current_vllm_config_or_none(), "kernel_config", None)
    by_kind = getattr(config, "linear_backend_per_quant", None) or {}
    asked = by_kind.get("mixed_precision") or getattr(config, "linear_backend", "auto")
    disabled = {"HummingLinearKernel", "MarlinLinearKernel"} & set(envs.VLLM_DISABLED_KERNELS)
    return asked == "auto" and not disabled


def batch_invariant() -> bool:
    """Whether the user asked for numbers that do not depend on what shares a batch (``VLLM_BATCH_INVARIANT``)."""
    from vllm import envs

    return bool(envs.VLLM_BATCH_INVARIANT)


def kernel_named(name: str, platform: str, config: Any) -> type | None:
    """Return one of vLLM's kernels by its class's name, if it takes an ``MPLinearLayerConfig``.

    Raises:
        CompatError: the lists are not where they were in vLLM 0.19.1 to 0.33.0.
    """
    for kernel in _kernels(platform):
        if kernel.__name__ == name:
            return kernel if kernel.can_implement(config)[0] else None
    return None


def copy_of_parameters(layer: torch.nn.Module) -> torch.nn.Module:
    """Make a module with copies of a layer's parameters, and of all that vLLM keeps on them and on the layer."""
    import torch

    made = torch.nn.Module()
    made.__dict__.update(
        {
            name: value
            for name, value in vars(layer).items()
            if not name.startswith("_") and name != "training"
        }
    )
    for name, parameter in layer._parameters.items():
        if parameter is not None:
            copied = torch.Tensor._make_subclass(type(parameter), parameter.data.clone(), False)
            copied.__dict__.update(parameter.__dict__)
            made.register_parameter(name, copied)
    return made


def in_gptq_layout(packed: Any, scales: Any) -> tuple[torch.Tensor, torch.Tensor]:
    """Return vLLM's two parameters as GPTQ has them, ``[k * bits / 32, n]`` and ``[groups, n]``.

    compressed-tensors has both transposed.
    """
    words = packed.data.t() if packed.input_dim == 1 else packed.data
    return words, scales.data.t() if scales.output_dim == 0 else scales.data
