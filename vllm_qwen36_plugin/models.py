"""The family's model classes, as vLLM is to build them: its own, with what the features want done at that moment.

The registry imports this module where the model is built, in the worker. Doing what it does from ``register()``
would import vLLM's kernels (3.5 s on two cores) into every command.
"""

from __future__ import annotations

from typing import Any

from vllm.model_executor.models import qwen3_5
from vllm.platforms import current_platform

from .act_order.built import introduced
from .architectures import TARGETS

# Importing them offers their kernels.
if current_platform.is_cpu():
    from .cpu import models as _cpu_int4  # noqa: F401
elif current_platform.is_cuda():
    from .prefill.offer import offer

    offer()


def __getattr__(name: str) -> Any:
    # Which classes there are depends on vLLM: 0.19.1 has no Qwen3_5ForCausalLM.
    found = getattr(qwen3_5, name)
    if name in TARGETS:
        found = introduced(found)
        # One class, however often it is asked for, that is found again under its name.
        found.__module__ = __name__
        globals()[name] = found
    return found
