"""The language model's parts, built one at a time: transformers' modules filled from :class:`Weights`."""

from __future__ import annotations

from collections.abc import Callable, Mapping
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
        dtype: dtype of weights and hidden states. float32 keeps rounding noise out of a comparison. Vectors stored
            in float32 (such as ``A_log``, exponents of a decay) stay float32 in any case, as in vLLM.
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
        """Number of decoder layers."""
        return int(self.config.num_hidden_layers)

    def embed(self, tokens: torch.Tensor) -> torch.Tensor:
        """Look up token ids ``[…]`` in the table in main memory; return ``[…, hidden]`` on the device."""
        return self._embedding[tokens].to(device=self.device, dtype=self.dtype)

    @cached_property
    def _embedding(self) -> torch.Tensor:
        return self.weights.under(f"{self.prefix}.embed_tokens.")["weight"]

    def layer_tensors(self, number: int) -> dict[str, torch.Tensor]:
        """Read one layer's dense tensors to the CPU, for :meth:`layer`."""
        return self.weights.under(f"{self.prefix}.layers.{number}.")

    def layer(
        self,
        number: int,
        tensors: Mapping[str, torch.Tensor] | None = None,
        linears: Mapping[str, nn.Module] | None = None,
    ) -> nn.Module:
        """Build decoder layer ``number``, ready to run.

        Args:
            number: of the layer, from 0.
            tensors: its dense tensors; None to read them.
            linears: modules, without parameters, that stand in for linears of the layer, by their names in it.
        """
        from transformers.models.qwen3_5.modeling_qwen3_5 import Qwen3_5DecoderLayer

        def build() -> nn.Module:
            module: nn.Module = Qwen3_5DecoderLayer(self.config, number)
            for name, linear in (linears or {}).items():
                module.set_submodule(name, linear)
            return module

        if tensors is None:
            tensors = self.layer_tensors(number)
        return self.fill(build, tensors, f"layer {number}")

    def norm(self, tensors: Mapping[str, torch.Tensor] | None = None, label: str = "norm") -> nn.Module:
        """Build an RMSNorm over the hidden size; without ``tensors`` the final one."""
        from transformers.models.qwen3_5.modeling_qwen3_5 import Qwen3_5RMSNorm

        if tensors is None:
            tensors = self.weights.under(f"{self.prefix}.norm.")
        eps = float(self.config.rms_norm_eps)
        return self.fill(lambda: Qwen3_5RMSNorm(int(self.config.hidden_size), eps=eps), tensors, label)

    def fill(
        self, build: Callable[[], nn.Module], tensors: Mapping[str, torch.Tensor], label: str
    ) -> nn.Module:
        """Return the module that ``build()`` makes, with ``tensors`` as its parameters.

        Args:
            build: makes the module; called with the meta device as default.
            tensors: by the module's own parameter names.
            label: what the module is, for messages.

        Raises:
            CheckpointError: a parameter is missing, left over, or of another shape.
        """
        with torch.device("meta"):
            module = build()
        cast = {
            name: tensor.to(device=self.device, dtype=tensor.dtype if _stays_float32(tensor) else self.dtype)
            for name, tensor in tensors.items()
        }
        try:
            module.load_state_dict(cast, strict=True, assign=True)
        except RuntimeError as error:
            raise CheckpointError(
                "checkpoint",
                f"{label} does not fit the architecture: {' '.join(str(error).split())}",
                remedy="Run: qwen36 check CHECKPOINT",
            ) from error
        return module.eval().requires_grad_(False)

    def rotary(self, length: int, shift: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
        """Return cos and sin ``[1, length, rotary dim]`` of text positions ``shift … shift + length - 1``."""
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
        """Run ``hidden`` ``[documents, length, hidden]`` through one layer, causally, from an empty state."""
        output: torch.Tensor = layer(
            hidden, position_embeddings=self.rotary(hidden.shape[1]), attention_mask=None
        )
        return output


def _stays_float32(tensor: torch.Tensor) -> bool:
    return bool(tensor.ndim == 1 and tensor.dtype == torch.float32)
