"""Whose checkpoint is it? vLLM asks each registered quantization config, custom ones first."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

from vllm_qwen36_plugin.architectures import MTP_DRAFT, TARGETS

NAME = "qwen36_gptq"
# bench/act_order sets this to have ours where the rules below leave a checkpoint to vLLM.
CLAIM_EVERYWHERE = False
# Where norms write in order (`norms`): on a GPU; on a CPU too, in plain PyTorch, for tests; or nowhere. On an H100
# it takes what act order adds to a decode step of 8 layers from 34 to 1.5 µs (vLLM's own adds 203).
# It changes the model's graph: `front` enters it into vLLM's key of compiled graphs. Whoever sets it where that
# check does not run must put something of their own into `additional_config`.
FOLD_NORMS: Literal["cuda", "always", "never"] = "cuda"
_USER_CHOICES = (None, "gptq", "gptq_marlin", "auto_gptq", "marlin", NAME)


def claims(hf_quant_cfg: Mapping[str, Any], user_choice: str | None, hf_config: Any) -> bool:
    """Whether this is a GPTQ checkpoint of the family in act order that the plugin is to serve.

    It is if this vLLM does not serve it itself, or not on this CPU, or if the user names our method. It also is if
    ours was measured faster and the user names no method.
    """
    if str(hf_quant_cfg.get("quant_method", "")).lower() != "gptq" or user_choice not in _USER_CHOICES:
        return False
    if not {*TARGETS, MTP_DRAFT}.intersection(getattr(hf_config, "architectures", None) or ()):
        return False
    # Imported for GPTQ checkpoints of the family alone: register() may not pay for it.
    from gptq_hybrid.checkpoint.quantization import asks_for_act_order

    if not asks_for_act_order(hf_quant_cfg):
        return False
    if CLAIM_EVERYWHERE or user_choice == NAME:
        return True
    from vllm_qwen36_plugin.upstream import gptq

    if not gptq.stock_serves_act_order() or not gptq.stock_kernels_run_here():
        return True
    return user_choice is None and gptq.our_act_order_is_faster()


def without_act_order(hf_quant_cfg: Mapping[str, Any]) -> dict[str, Any]:
    """Copy the config with every ``desc_act`` off. vLLM sees this, as its kernels get sorted rows."""
    config = {**hf_quant_cfg, "desc_act": False}
    dynamic = config.get("dynamic")
    if isinstance(dynamic, Mapping):
        config["dynamic"] = {
            pattern: {key: value for key, value in rule.items() if key != "desc_act"}
            if isinstance(rule, Mapping)
            else rule
            for pattern, rule in dynamic.items()
        }
    return config
