"""What vLLM's decoder layer of the family is made of.

Changes: nothing here; `act_order.norms` replaces the norms of a loaded model and permutes dense weights.
Why: a norm that writes in order spares each linear behind it a permutation.
Versions: same names from 0.22 to 0.33.0.
Checks: the layer and its norm are the classes expected; otherwise every linear permutes its input.
May go: with act order.
"""

from __future__ import annotations

from typing import Any

from vllm_qwen36_plugin.errors import CompatError


def decoder_classes() -> tuple[type, type]:
    """Return vLLM's decoder layer, and the norm in it.

    Raises:
        CompatError: they are not where they were, or the norm is another one.
    """
    try:
        from vllm.model_executor.layers.layernorm import GemmaRMSNorm
        from vllm.model_executor.models.qwen3_5 import Qwen3_5DecoderLayer, Qwen3_5RMSNorm
    except ImportError as error:
        raise CompatError(f"vLLM's decoder layer of Qwen3.5 cannot be imported: {error}") from error
    if Qwen3_5RMSNorm is not GemmaRMSNorm:
        raise CompatError(f"vLLM's decoder layer has another norm, {Qwen3_5RMSNorm.__name__}")
    return Qwen3_5DecoderLayer, GemmaRMSNorm


def linears_in(block: Any) -> dict[str, Any]:
    """Return the linears within a module, by their names in it."""
    from vllm.model_executor.layers.linear import LinearMethodBase

    return {
        name: module
        for name, module in block.named_modules()
        if isinstance(getattr(module, "quant_method", None), LinearMethodBase)
    }


def has_plain_weight(linear: Any) -> bool:
    """Whether a linear is not quantized and its weight ``[n, k]`` is as it was loaded."""
    from vllm.model_executor.layers.linear import UnquantizedLinearMethod

    if type(linear.quant_method) is not UnquantizedLinearMethod:
        return False
    # vLLM's CPU build packs it, and may leave the weight where it was. On CUDA nothing is done to it.
    return getattr(getattr(linear, "weight", None), "ndim", 0) == 2 and not hasattr(linear, "cpu_linear")
