"""Whose checkpoint is it? vLLM asks each registered quantization config, custom ones first.

The class registered here only answers that; the config proper (`config.py`) and vLLM's own, which it is made of,
are imported for checkpoints that are claimed.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

from vllm_qwen36_plugin.architectures import MTP_DRAFT, TARGETS

NAME = "qwen36_gptq"
# bench/act_order sets this to have ours where the rules below leave a checkpoint to vLLM.
CLAIM_EVERYWHERE = False
# Where norms write in order (`norms`): on a GPU; on a CPU too, in plain PyTorch, for tests; or nowhere. On an H100
# it takes what act order adds to a decode step of 8 layers from 34 to 1.5 us (vLLM's own adds 203).
# It changes the model's graph: `front` enters it into vLLM's key of compiled ones, and whoever sets it where that
# check does not run gives `additional_config` something of its own.
FOLD_NORMS: Literal["cuda", "always", "never"] = "cuda"
_USER_CHOICES = (None, "gptq", "gptq_marlin", "auto_gptq", "marlin", NAME)


def register() -> None:
    """Register the config with vLLM. Idempotent."""
    from vllm.model_executor.layers.quantization import QUANTIZATION_METHODS, register_quantization_config
    from vllm.model_executor.layers.quantization.base_config import QuantizationConfig

    if NAME in QUANTIZATION_METHODS:
        return

    class ActOrderClaim(QuantizationConfig):  # type: ignore[misc]
        """Answers for `ActOrderConfig` until one is made."""

        @classmethod
        def override_quantization_method(
            cls, hf_quant_cfg: Mapping[str, Any], user_quant: str | None, hf_config: Any = None
        ) -> str | None:
            return NAME if claims(hf_quant_cfg, user_quant, hf_config) else None

        @classmethod
        def get_name(cls) -> str:
            return NAME

        @classmethod
        def get_config_filenames(cls) -> list[str]:
            return ["quantize_config.json"]

        @classmethod
        def get_min_capability(cls) -> int:
            return _config_class().get_min_capability()  # type: ignore[no-any-return]

        @classmethod
        def get_supported_act_dtypes(cls) -> list[Any]:
            return _config_class().get_supported_act_dtypes()  # type: ignore[no-any-return]

        @classmethod
        def from_config(cls, config: dict[str, Any]) -> Any:
            return _config_class().from_config(config)

    register_quantization_config(NAME)(ActOrderClaim)


def claims(hf_quant_cfg: Mapping[str, Any], user_quant: str | None, hf_config: Any) -> bool:
    """Whether this is a GPTQ checkpoint of the family in act order that the plugin is to serve.

    That is wherever this vLLM does not serve it itself; where ours was measured faster, unless the user names a
    method of vLLM's; and wherever the user names ours.
    """
    if str(hf_quant_cfg.get("quant_method", "")).lower() != "gptq" or user_quant not in _USER_CHOICES:
        return False
    if not {*TARGETS, MTP_DRAFT}.intersection(getattr(hf_config, "architectures", None) or ()):
        return False
    # Imported for GPTQ checkpoints of the family alone: register() may not pay for it.
    from gptq_hybrid.checkpoint.quantization import asks_for_act_order

    if not asks_for_act_order(hf_quant_cfg):
        return False
    if CLAIM_EVERYWHERE or user_quant == NAME:
        return True
    from vllm_qwen36_plugin.upstream import act_order

    if not act_order.stock_serves_act_order():
        return True
    return user_quant is None and act_order.ours_is_faster()


def without_act_order(hf_quant_cfg: Mapping[str, Any]) -> dict[str, Any]:
    """The same config with every ``desc_act`` off: what vLLM sees, its kernels getting sorted rows."""
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


def _config_class() -> Any:
    from .config import ActOrderConfig

    return ActOrderConfig
