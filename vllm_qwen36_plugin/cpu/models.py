"""vLLM's own model classes; importing this module offers the kernel first, and has 8 bits let through to it.

The registry imports a model class where the model is built, in the worker. Doing
it from ``register()`` would import vLLM's kernels (3.5 s on two cores) into every
command.
"""

from __future__ import annotations

from typing import Any

from vllm.model_executor.models import qwen3_5
from vllm.scalar_type import scalar_types

from vllm_qwen36_plugin.upstream.gptq_types import allow_weight_type
from vllm_qwen36_plugin.upstream.linear_kernels import offer_first

from .packed_weights import DequantizedLinearKernel

offer_first("CPU", DequantizedLinearKernel)
allow_weight_type(scalar_types.uint8b128)


def __getattr__(name: str) -> Any:
    # Which classes there are depends on vLLM: 0.19.1 has no Qwen3_5ForCausalLM.
    return getattr(qwen3_5, name)
