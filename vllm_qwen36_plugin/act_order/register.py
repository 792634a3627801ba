"""Register the quantization config with vLLM, in every process and for every model.

So the class registered here only answers vLLM's question whose checkpoint it is. The config proper (`config`), and
vLLM's own that it is made of, are imported for checkpoints that are claimed.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from .claim import NAME, claims


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


def _config_class() -> Any:
    from .config import ActOrderConfig

    return ActOrderConfig
