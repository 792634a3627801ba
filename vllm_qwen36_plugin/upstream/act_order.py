"""vLLM's GPTQ config and linear method, to subclass, and how a version treats ``g_idx``.

``GPTQMarlinConfig`` in ``gptq_marlin`` up to 0.20, ``AutoGPTQConfig`` in ``auto_gptq`` from 0.22 on. Act order
went in 0.30, and ``has_g_idx`` of the kernels' config with it.
"""

from __future__ import annotations

from dataclasses import fields
from typing import Any

from vllm_qwen36_plugin.errors import CompatError

from .gptq_types import gptq_module

_NAMES = {
    "auto_gptq": ("AutoGPTQConfig", "AutoGPTQLinearMethod"),
    "gptq_marlin": ("GPTQMarlinConfig", "GPTQMarlinLinearMethod"),
}
# Versions with act order of their own on which ours was measured.
_MEASURED_FASTER = frozenset({(0, 26)})
_CALLED = (
    ("from_config", "get_quant_method"),
    ("create_weights", "process_weights_after_loading", "apply"),
)


def stock_gptq() -> tuple[Any, Any]:
    """vLLM's own GPTQ config and its linear method.

    Raises:
        CompatError: they are not where they were in 0.19.1 to 0.33.0, or lack what is called on them.
    """
    module = gptq_module()
    names = _NAMES[module.__name__.rpartition(".")[2]]
    config, method = (getattr(module, name, None) for name in names)
    for name, found, called in zip(names, (config, method), _CALLED, strict=True):
        if not isinstance(found, type):
            raise CompatError(f"{module.__name__} has no {name}")
        for function in called:
            if not callable(getattr(found, function, None)):
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


def ours_is_faster() -> bool:
    """Whether the plugin's act order was measured faster than this vLLM's own, and nothing is lost by taking it.

    On an H100 with 0.26 what it adds to a decode step's kernels is 0.007 of what vLLM's own adds (bench/act_order).
    Vendor and number of GPUs: ours does not do tensor parallelism, of which nothing is known yet when vLLM asks.
    """
    from vllm.platforms import current_platform

    from gptq_hybrid.doctor import installed_vllm

    installed = installed_vllm()
    if installed is None or installed.version.release[:2] not in _MEASURED_FASTER:
        return False
    return bool(current_platform.is_cuda() and current_platform.device_count() == 1)


def identity_weight_mapper() -> Any:
    """A mapper that renames nothing; vLLM's own drops every ``g_idx`` from 0.30 on."""
    from vllm.model_executor.models.utils import WeightsMapper

    return WeightsMapper()
