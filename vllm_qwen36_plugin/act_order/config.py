"""vLLM's GPTQ config with act order put back. Imported when a checkpoint is claimed, or unpickled in a worker."""

from __future__ import annotations

from typing import Any

import torch

from vllm_qwen36_plugin.upstream.gptq import identity_weight_mapper, stock_gptq

from .claim import NAME, claims, without_act_order
from .method import ActOrderLinearMethod
from .norms import fold_norms
from .siblings import Siblings

_StockConfig, _StockMethod = stock_gptq()


class ActOrderConfig(_StockConfig):  # type: ignore[misc, valid-type]
    """vLLM's own config with every ``desc_act`` off, and linear methods that sort by ``g_idx`` on load."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.siblings = Siblings(fold_norms)

    @classmethod
    def get_name(cls) -> str:
        return NAME

    @classmethod
    def from_config(cls, config: dict[str, Any]) -> ActOrderConfig:
        return super().from_config(without_act_order(config))  # type: ignore[no-any-return]

    @classmethod
    def override_quantization_method(
        cls, hf_quant_cfg: dict[str, Any], user_quant: str | None, hf_config: Any = None
    ) -> str | None:
        return NAME if claims(hf_quant_cfg, user_quant, hf_config) else None

    def get_quant_method(self, layer: torch.nn.Module, prefix: str) -> Any:
        """Return vLLM's choice, with a GPTQ linear's method replaced by ours. Kernels and exclusions stay."""
        method = super().get_quant_method(layer, prefix)
        if type(method) is not _StockMethod:
            return method
        self.siblings.add(prefix, layer)
        ours = ActOrderLinearMethod(method.quant_config, prefix, self.siblings)
        ours.input_dtype = getattr(method, "input_dtype", None)
        return ours

    @staticmethod
    def get_checkpoint_weight_mapper() -> Any:
        return identity_weight_mapper()
