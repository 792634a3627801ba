"""The question vLLM's GPTQ linear method asks before any kernel is: may weights be of this type at all?

On CPUs it names 4 bits alone ("only supports 4-bits for now", read in 0.32.0), so that a kernel for 8 bits is never
reached.
"""

from __future__ import annotations

from functools import wraps
from importlib import import_module
from typing import Any

from vllm_qwen36_plugin.errors import CompatError

_PACKAGE = "vllm.model_executor.layers.quantization"
# From 0.22 on, and up to 0.20.
_MODULES = ("auto_gptq", "gptq_marlin")
_NAME = "verify_marlin_supported"


def allow_weight_type(weight_type: Any) -> None:
    """Have GPTQ linears of ``weight_type`` pass that question; a kernel must take them then. Idempotent.

    Raises:
        CompatError: the function is not where it was in 0.19.1 to 0.33.0.
    """
    module = gptq_module()
    verify = getattr(module, _NAME, None)
    if not callable(verify):
        raise CompatError(f"{module.__name__} has no {_NAME}()")
    allowed: frozenset[Any] = getattr(verify, "qwen36_allowed", frozenset())
    if weight_type in allowed:
        return

    @wraps(verify)
    def verify_unless_allowed(quant_type: Any, *args: Any, **kwargs: Any) -> None:
        if quant_type != weight_type:
            verify(quant_type, *args, **kwargs)

    vars(verify_unless_allowed)["qwen36_allowed"] = allowed | {weight_type}
    setattr(module, _NAME, verify_unless_allowed)


def gptq_module() -> Any:
    """vLLM's own GPTQ module: ``auto_gptq`` from 0.22 on, ``gptq_marlin`` up to 0.20.

    Raises:
        CompatError: it has neither.
    """
    for name in _MODULES:
        try:
            return import_module(f"{_PACKAGE}.{name}")
        except ModuleNotFoundError:
            continue
    raise CompatError(f"{_PACKAGE} has none of {', '.join(_MODULES)}")
