"""Offer the prefill kernel to vLLM. Called when a model class is imported, in the worker.

Not from ``register()``: that would import vLLM's kernels into every command.
"""

from __future__ import annotations

from vllm_qwen36_plugin.log import logger
from vllm_qwen36_plugin.report import note
from vllm_qwen36_plugin.upstream.linear_kernels import batch_invariant


def offer_kernel() -> None:
    """Put the prefill kernel ahead of vLLM's own, also where the user asks for Marlin or Machete by name.

    Raises:
        CompatError: vLLM's lists of kernels are not what the plugin expects.
    """
    from vllm_qwen36_plugin.upstream.linear_kernels import offer_first

    from .kernel import PrefillLinearKernel

    offer_first("CUDA", PrefillLinearKernel, ("marlin", "machete"))


def offer() -> None:
    """Do the same for serving: if it fails, log why and leave prefill off."""
    try:
        offer_kernel()
        if batch_invariant():
            note("prefill", "off", "VLLM_BATCH_INVARIANT asks for numbers that depend on no number of tokens")
            logger.info("vllm-qwen36-plugin: prefill is off, as VLLM_BATCH_INVARIANT is set")
    except Exception as error:  # noqa: BLE001 - the model serves without it
        logger.warning("vllm-qwen36-plugin: prefill is off because %s", error or repr(error))
        note("prefill", "off", error or repr(error))
