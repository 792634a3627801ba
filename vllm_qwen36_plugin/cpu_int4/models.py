"""vLLM's own model classes; importing them from here offers the kernel first.

The registry imports a model class where the model is built, in the worker. Doing
it from ``register()`` would import vLLM's kernels (3.5 s on two cores) into every
command.
"""

from __future__ import annotations

from vllm.model_executor.models.qwen3_5 import Qwen3_5ForCausalLM, Qwen3_5ForConditionalGeneration

from vllm_qwen36_plugin.compat.linear_kernels import offer_first

from .kernel import DequantizedInt4LinearKernel

__all__ = ["Qwen3_5ForCausalLM", "Qwen3_5ForConditionalGeneration"]

offer_first("CPU", DequantizedInt4LinearKernel)
