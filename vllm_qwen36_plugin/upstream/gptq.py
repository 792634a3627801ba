"""vLLM's GPTQ config and linear method, and how a version treats ``g_idx``.

Changes: nothing; the plugin subclasses both, and its config has a mapper that renames nothing.
Why: kernels, exclusions and weight loaders stay vLLM's; from 0.30 on its own mapper drops every ``g_idx``.
Versions: ``gptq_marlin.GPTQMarlinConfig`` in 0.19.1 to 0.20, ``auto_gptq.AutoGPTQConfig`` in 0.22 to 0.33.0.
Checks: both classes have the methods that are called; act order is served while the kernels know ``has_g_idx``
    and, on a CPU, while its library has a kernel for 4 bits.
May go: when vLLM serves act order again, or nobody has such checkpoints; W4 and W8 drafts use the method too.
"""

from __future__ import annotations

from dataclasses import fields
from importlib import import_module
from typing import Any

from vllm_qwen36_plugin.errors import CompatError

_PACKAGE = "vllm.model_executor.layers.quantization"
# From 0.22 on, and up to 0.20.
_CLASSES = {
    "auto_gptq": ("AutoGPTQConfig", "AutoGPTQLinearMethod"),
    "gptq_marlin": ("GPTQMarlinConfig", "GPTQMarlinLinearMethod"),
}
_CALLED = (
    ("from_config", "get_quant_method"),
    ("create_weights", "process_weights_after_loading", "apply"),
)
# Versions with act order of their own on which ours was measured.
_MEASURED_FASTER = frozenset({(0, 26)})


def gptq_module() -> Any:
    """Import vLLM's own GPTQ module: ``auto_gptq`` from 0.22 on, ``gptq_marlin`` up to 0.20.

    Raises:
        CompatError: it has neither.
    """
    for name in _CLASSES:
        try:
            return import_module(f"{_PACKAGE}.{name}")
        except ModuleNotFoundError:
            continue
    raise CompatError(f"{_PACKAGE} has none of {', '.join(_CLASSES)}")


def stock_gptq() -> tuple[Any, Any]:
    """Return vLLM's own GPTQ config and its linear method.

    Raises:
        CompatError: they are not where they were in 0.19.1 to 0.33.0, or lack what is called on them.
    """
    module = gptq_module()
    names = _CLASSES[module.__name__.rpartition(".")[2]]
    config, method = (getattr(module, name, None) for name in names)
    for name, kind, called in zip(names, (config, method), _CALLED, strict=True):
        if not isinstance(kind, type):
            raise CompatError(f"{module.__name__} has no {name}")
        for function in called:
            if not callable(getattr(kind, function, None)):
                raise CompatError(f"{module.__name__}.{name} has no {function}()")
    return config, method


def stock_serves_act_order() -> bool:
    """Whether this vLLM's kernels take a ``g_idx``, as all did up to 0.29.

    Raises:
        CompatError: the kernels' config is not where it was.
    """
    try:
        from vllm.model_executor.kernels.linear import MPLinearLayerConfig
    except ImportError as error:
        raise CompatError(f"vLLM's linear kernels cannot be imported: {error}") from error
    return any(field.name == "has_g_idx" for field in fields(MPLinearLayerConfig))


def stock_kernels_run_here() -> bool:
    """Whether vLLM's 4-bit kernel is in the library that this machine loads: on x86, in that for AVX-512 alone.

    Up to 0.29 it takes act order without it, loads the weights, and dies at the first forward pass.
    """
    from vllm.platforms import CpuArchEnum, current_platform

    if not current_platform.is_cpu() or current_platform.get_cpu_architecture() != CpuArchEnum.X86:
        return True
    import torch

    # What vLLM goes by when it loads the library; in this process that may be still to come.
    return bool(torch.cpu._is_avx512_supported())


def our_act_order_is_faster() -> bool:
    """Whether the plugin's act order was measured faster than this vLLM's own, and can do all that is needed.

    On an H100 with 0.26 what it adds to a decode step's kernels is 0.007 of what vLLM's own adds (bench/act_order).
    It was measured on one NVIDIA GPU; over several, of which nothing is known yet when vLLM asks, it was not.
    """
    from vllm.platforms import current_platform

    from gptq_hybrid.doctor import installed_vllm

    installed = installed_vllm()
    if installed is None or installed.version.release[:2] not in _MEASURED_FASTER:
        return False
    return bool(current_platform.is_cuda() and current_platform.device_count() == 1)


def identity_weight_mapper() -> Any:
    """Return a mapper that renames nothing."""
    from vllm.model_executor.models.utils import WeightsMapper

    return WeightsMapper()
