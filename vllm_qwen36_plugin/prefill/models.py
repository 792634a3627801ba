"""vLLM's own model classes; importing this module offers the kernel first.

The registry imports a model class where the model is built, in the worker. Doing it from ``register()`` would
import vLLM's kernels into every command.
"""

from __future__ import annotations

from typing import Any

from vllm.model_executor.models import qwen3_5

from vllm_qwen36_plugin.log import logger


def _offer() -> None:
    try:
        from vllm_qwen36_plugin.upstream.linear_kernels import offer_first

        from .kernel import RowDispatchKernel

        offer_first("CUDA", RowDispatchKernel, ("marlin", "machete"))
    except Exception as error:  # noqa: BLE001 - the model serves without it
        logger.warning("vllm-qwen36-plugin: prefill is off because %s", error or repr(error))


_offer()


def __getattr__(name: str) -> Any:
    # Which classes there are depends on vLLM: 0.19.1 has no Qwen3_5ForCausalLM.
    return getattr(qwen3_5, name)
