"""The question that vLLM's GPTQ linear method asks before any kernel: may weights be of this type at all?

Changes: ``verify_marlin_supported`` of vLLM's GPTQ module lets one more weight type pass.
Why: on CPUs it accepts 4 bits alone ("only supports 4-bits for now"), so a kernel for 8 bits is never reached.
Versions: 0.19.1 to 0.33.0, in ``auto_gptq`` or ``gptq_marlin`` (:mod:`.gptq`).
Checks: the function is there.
May go: when the CPU build has a kernel for 8 bits.
"""

from __future__ import annotations

from functools import wraps
from typing import Any

from vllm_qwen36_plugin.errors import CompatError

from .gptq import gptq_module

_NAME = "verify_marlin_supported"


def allow_weight_type(weight_type: Any) -> None:
    """Let GPTQ linears of ``weight_type`` pass that question; a kernel must take them then. Idempotent.

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
