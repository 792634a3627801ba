"""vLLM's GPTQ config and linear method, to subclass, and how a version treats ``g_idx``.

``GPTQMarlinConfig`` in ``gptq_marlin`` up to 0.20, ``AutoGPTQConfig`` in ``auto_gptq`` from 0.22 on. Act order
went in 0.30, and ``has_g_idx`` of the kernels' config with it.
"""

from __future__ import annotations

from dataclasses import fields
from importlib import import_module
from typing import Any

from vllm_qwen36_plugin.errors import CompatError

_PACKAGE = "vllm.model_executor.layers.quantization"
_NAMES = (
    ("auto_gptq", "AutoGPTQConfig", "AutoGPTQLinearMethod"),
    ("gptq_marlin", "GPTQMarlinConfig", "GPTQMarlinLinearMethod"),
)


def stock_gptq() -> tuple[Any, Any]:
    """vLLM's own GPTQ config and its linear method.

    Raises:
        CompatError: they are not where they were in 0.19.1 to 0.33.0, or lack what is called on them.
    """
    for module_name, config_name, method_name in _NAMES:
        try:
            module = import_module(f"{_PACKAGE}.{module_name}")
        except ModuleNotFoundError:
            continue
        config, method = getattr(module, config_name, None), getattr(module, method_name, None)
        if not isinstance(config, type) or not isinstance(method, type):
            raise CompatError(f"{module.__name__} has no {config_name} or no {method_name}")
        for owner, names in (
            (config, ("from_config", "get_quant_method")),
            (method, ("create_weights", "process_weights_after_loading", "apply")),
        ):
            missing = [name for name in names if not callable(getattr(owner, name, None))]
            if missing:
                raise CompatError(f"{module.__name__}.{owner.__name__} has no {missing[0]}()")
        return config, method
    raise CompatError(f"{_PACKAGE} has none of {', '.join(name for name, _, _ in _NAMES)}")


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


def identity_weight_mapper() -> Any:
    """A mapper that renames nothing; vLLM's own drops every ``g_idx`` from 0.30 on."""
    from vllm.model_executor.models.utils import WeightsMapper

    return WeightsMapper()
