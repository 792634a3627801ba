"""The language model's parts, one at a time: transformers' modules filled from :class:`Weights`."""

from __future__ import annotations

from collections.abc import Mapping
from functools import cached_property
from typing import Any

import torch
from torch import nn

from gptq_hybrid.common.errors import CheckpointError

from ._weights import Weights


class TextStack:
    """Embedding, decoder layers and final norm of a ``qwen3_5`` model.

    Args:
        weights: where tensors come from.
        device: where modules are built and run.
        dtype: dtype of weights and hidden states. float32 makes a comparison free of rounding noise. Vectors that
            are stored in float32 (such as ``A_log``, exponents of a decay) stay so in either, as in vLLM.
    """

    def __init__(self, weights: Weights, device: torch.device, dtype: torch.dtype) -> None:
        self.weights = weights
        self.device = device
        self.dtype = dtype
        self.prefix = weights.layout.layers_prefix.removesuffix(".layers")
        self._rotary: dict[tuple[int, int], tuple[torch.Tensor, torch.Tensor]] = {}

    @cached_property
    def config(self) -> Any:
        """transformers' text config."""
        from transformers.models.qwen3_5.configuration_qwen3_5 import Qwen3_5TextConfig

        text = self.weights.config.get("text_config")
        raw = dict(text if isinstance(text, Mapping) else self.weights.config)
        raw.pop("quantization_config", None)
        config = Qwen3_5TextConfig(**raw)
        config._attn_implementation = "sdpa"
        return config

    @property
    def depth(self) -> int:
        return int(self.config.num_hidden_layers)

    def embed(self, tokens: torch.Tensor) -> torch.Tensor:
        """``[…]`` token ids to ``[…, hidden]``, looked up where the table lies (main memory), then moved."""
        return self._embedding[tokens].to(device=self.device, dtype=self.dtype)

    @cached_property
    def _embedding(self) -> torch.Tensor:
        return self.weights.under(f"{self.prefix}.embed_tokens.")["weight"]

    def layer_tensors(self, number: int) -> dict[str, torch.Tensor]:
        """One layer's dense tensors on the CPU; what :meth:`layer` takes."""
        return self.weights.under(f"{self.prefix}.layers.{number}.")

    def layer(self, number: int, tensors: Mapping[str, torch.Tensor] | None = None) -> nn.Module:
        """Decoder layer ``number``, ready to run."""
        from transformers.models.qwen3_5.modeling_qwen3_5 import Qwen3_5DecoderLayer

        found = self.layer_tensors(number) if tensors is None else tensors
        return self.filled(lambda: Qwen3_5DecoderLayer(self.config, number), found, f"layer {number}")

    def norm(self, tensors: Mapping[str, torch.Tensor] | None = None, what: str = "norm") -> nn.Module:
        """An RMSNorm over the hidden size; the final one unless ``tensors`` are given."""
        from transformers.models.qwen3_5.modeling_qwen3_5 import Qwen3_5RMSNorm

        found = self.weights.under(f"{self.prefix}.norm.") if tensors is None else tensors
        eps = float(self.config.rms_norm_eps)
        return self.filled(lambda: Qwen3_5RMSNorm(int(self.config.hidden_size), eps=eps), found, what)

    def filled(self, build: Any, tensors: Mapping[str, torch.Tensor], what: str) -> nn.Module:
        """The module ``build()`` returns, with ``tensors`` for its parameters.

        Raises:
            CheckpointError: a parameter is missing, left over, or of another shape.
        """
        with torch.device("meta"):
            module: nn.Module = build()
        cast = {
            name: tensor.to(device=self.device, dtype=tensor.dtype if _kept(tensor) else self.dtype)
            for name, tensor in tensors.items()
        }
        try:
            module.load_state_dict(cast, strict=True, assign=True)
        except RuntimeError as error:
            raise CheckpointError(
                "checkpoint",
                f"{what} does not fit the architecture: {' '.join(str(error).split())}",
                remedy="Run: qwen36 check CHECKPOINT",
            ) from error
        return module.eval().requires_grad_(False)

    def rotary(self, length: int, shift: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
        """cos and sin ``[1, length, rotary dim]`` of positions ``shift … shift + length - 1`` of text."""
        from transformers.models.qwen3_5.modeling_qwen3_5 import Qwen3_5TextRotaryEmbedding

        if (length, shift) not in self._rotary:
            embedding = Qwen3_5TextRotaryEmbedding(self.config).to(self.device)
            positions = (
                torch.arange(shift, shift + length, device=self.device).view(1, 1, -1).expand(3, 1, -1)
            )
            like = torch.zeros(1, dtype=self.dtype, device=self.device)
            self._rotary[(length, shift)] = embedding(like, positions)
        return self._rotary[(length, shift)]

    def run_layer(self, layer: nn.Module, hidden: torch.Tensor) -> torch.Tensor:
        """``hidden`` ``[documents, length, hidden]`` through one layer, causally, from an empty state."""
        output: torch.Tensor = layer(
            hidden, position_embeddings=self.rotary(hidden.shape[1]), attention_mask=None
        )
        return output


def _kept(tensor: torch.Tensor) -> bool:
    return bool(tensor.ndim == 1 and tensor.dtype == torch.float32)
