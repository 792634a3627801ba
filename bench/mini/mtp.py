"""The MTP head of the small model in plain torch, in float32: one decoder layer, drafting twice from each position.

The numerics are those of vLLM's `Qwen3_5MultiTokenPredictor`, and of the checkpoint's training.
"""

from __future__ import annotations

import json
from pathlib import Path

import torch
import torch.nn.functional as F  # noqa: N812
from safetensors.torch import load_file
from torch import Tensor

Cache = tuple[Tensor, Tensor]  # rotated keys and values, [1, key heads, positions, head dim]


class MTPHead:
    """The head of a checkpoint and the embeddings that it shares with the target."""

    def __init__(self, checkpoint: Path) -> None:
        self.config = json.loads((checkpoint / "config.json").read_text(encoding="utf-8"))["text_config"]
        tensors: dict[str, Tensor] = {}
        for file in checkpoint.glob("*.safetensors"):
            tensors |= load_file(file)
        self.embeddings = tensors["model.language_model.embed_tokens.weight"].float()
        self.weights = {
            name.removeprefix("mtp.").removesuffix(".weight"): tensor.float()
            for name, tensor in tensors.items()
            if name.startswith("mtp.")
        }

    def drafts(self, hidden: Tensor, following: Tensor, after: Tensor) -> tuple[Tensor, Tensor]:
        """Hidden states ``[1, n, hidden size]`` of both draft steps from each of ``n`` positions of a document.

        ``hidden``: the target's, after its final norm. ``following`` and ``after``: ids ``[1, n]`` of the next two
        tokens. The second step attends to the first one's keys up to its position, and to its own.
        """
        causal = torch.ones(hidden.shape[1], hidden.shape[1], dtype=torch.bool).tril()
        own = torch.eye(hidden.shape[1], dtype=torch.bool)
        first, cache = self._step(following, hidden, causal)
        second, _ = self._step(after, first, torch.cat((causal, own), -1), 1, cache)
        return first, second

    def _step(
        self, tokens: Tensor, hidden: Tensor, mask: Tensor, shift: int = 0, past: Cache | None = None
    ) -> tuple[Tensor, Cache]:
        inputs = self._norm(self.embeddings[tokens], "pre_fc_norm_embedding")
        x = self._linear(torch.cat((inputs, self._norm(hidden, "pre_fc_norm_hidden")), -1), "fc")
        y, cache = self._attend(self._norm(x, "layers.0.input_layernorm"), mask, shift, past)
        x = x + y
        y = self._norm(x, "layers.0.post_attention_layernorm")
        gate, up = (self._linear(y, f"layers.0.mlp.{name}_proj") for name in ("gate", "up"))
        x = x + self._linear(F.silu(gate) * up, "layers.0.mlp.down_proj")
        return self._norm(x, "norm"), cache

    def _attend(self, x: Tensor, mask: Tensor, shift: int, past: Cache | None) -> tuple[Tensor, Cache]:
        """Attention with a sigmoid output gate, from positions ``shift``, ``shift`` + 1, …"""
        dim, layer = self.config["head_dim"], "layers.0.self_attn"
        q, k, v = (self._linear(x, f"{layer}.{name}_proj").unflatten(-1, (-1, 2 * dim if name == "q" else dim))
                   for name in "qkv")  # fmt: skip
        q, gate = q.chunk(2, -1)
        q, k = (self._rotate(self._norm(y, f"{layer}.{n}_norm"), shift) for y, n in ((q, "q"), (k, "k")))
        q, k, v = (y.transpose(1, 2) for y in (q, k, v))
        if past is not None:
            k, v = torch.cat((past[0], k), 2), torch.cat((past[1], v), 2)
        y = F.scaled_dot_product_attention(q, k, v, attn_mask=mask, enable_gqa=True).transpose(1, 2)
        return self._linear((y * torch.sigmoid(gate)).flatten(-2), f"{layer}.o_proj"), (k, v)

    def _rotate(self, x: Tensor, shift: int) -> Tensor:
        """Rotary embedding of the first part of each head, for ``[1, n, heads, head dim]``."""
        rope = self.config["rope_parameters"]
        size = int(x.shape[-1] * rope["partial_rotary_factor"])
        frequencies = rope["rope_theta"] ** (-torch.arange(0, size, 2).float() / size)
        angles = torch.arange(shift, shift + x.shape[1]).float()[:, None, None] * frequencies
        a, b, rest = x.split((size // 2, size // 2, x.shape[-1] - size), -1)
        cos, sin = angles.cos(), angles.sin()
        return torch.cat((a * cos - b * sin, b * cos + a * sin, rest), -1)

    def _norm(self, x: Tensor, name: str) -> Tensor:
        """RMSNorm that scales by 1 + weight."""
        scale = torch.rsqrt(x.square().mean(-1, keepdim=True) + self.config["rms_norm_eps"])
        return x * scale * (1.0 + self.weights[name])

    def _linear(self, x: Tensor, name: str) -> Tensor:
        return F.linear(x, self.weights[name])
