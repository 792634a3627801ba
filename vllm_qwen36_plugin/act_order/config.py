"""vLLM's GPTQ config with act order put back. Imported when a checkpoint is claimed, or unpickled in a worker."""

from __future__ import annotations

import weakref
from typing import Any

import torch

from vllm_qwen36_plugin.upstream.act_order import identity_weight_mapper, stock_gptq

from .claim import NAME, claims, without_act_order
from .method import ActOrderLinearMethod

_StockConfig, _StockMethod = stock_gptq()


class Siblings:
    """The layers of one model by prefix, so that `gate_up_proj` finds its `down_proj`; and that model.

    vLLM copies its config for every layer; the copies share this one.
    """

    def __init__(self) -> None:
        self._layers: dict[str, weakref.ref[torch.nn.Module]] = {}
        self._model: weakref.ref[torch.nn.Module] | None = None

    def __deepcopy__(self, memo: dict[int, Any]) -> Siblings:
        return self

    def __reduce__(self) -> tuple[type[Siblings], tuple[()]]:
        return Siblings, ()

    def add(self, prefix: str, layer: torch.nn.Module) -> None:
        self._layers[prefix] = weakref.ref(layer)

    def find(self, prefix: str) -> torch.nn.Module | None:
        """The layer of that prefix, while it lives."""
        found = self._layers.get(prefix)
        return found() if found else None

    def meet(self, model: torch.nn.Module) -> None:
        """Take note of the model, once it is built (`built.introduced`)."""
        self._model = weakref.ref(model)

    def take_model(self) -> torch.nn.Module | None:
        """That model, the first time it is asked for; None later, and where none was built by a class of ours."""
        model, self._model = self._model, None
        return model() if model else None


class ActOrderConfig(_StockConfig):  # type: ignore[misc, valid-type]
    """vLLM's own config with every ``desc_act`` off, and linear methods that sort by ``g_idx`` on load."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.siblings = Siblings()

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
        """vLLM's choice, a GPTQ linear's method replaced by ours; kernels and exclusions stay vLLM's."""
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
