"""What follows the last layer: the output head's logits, and the MTP head's drafts along given text.

transformers has no module for the MTP head; vLLM defines what it computes (``models/qwen3_5_mtp.py``). One step
takes the final-normed hidden state of a position and the embedding of the next token: ``fc([norm(embedding),
norm(hidden)])``, one full-attention layer, a norm. ``lm_head`` then gives the draft of the token after that. For
further drafts the head takes its own output as the hidden state.
"""

from __future__ import annotations

from copy import deepcopy
from typing import Any

import torch
from torch import nn

from gptq_hybrid.common.errors import CheckpointError

from ._stack import TextStack
from ._weights import Weights

# Channels of the output head that are widened to float32 at once: 335 MB at 5,120 inputs.
_CHANNELS = 16_384
_NORMS = ("norm", "pre_fc_norm_embedding", "pre_fc_norm_hidden")


class OutputHead:
    """``lm_head`` of a checkpoint, or its tied embedding, on the stack's device.

    A dense head is kept in its stored dtype. A packed one is unpacked to float32 (5.1 GB at 27B), or to the
    stack's dtype if that is smaller. Logits are computed in float32 whatever the stack's dtype: BF16 products of
    the size of logits are off by 0.06, which alone makes a KL divergence of a thousandth.
    """

    def __init__(self, stack: TextStack) -> None:
        tied = not any(spec.name == "lm_head.weight" for spec in stack.weights.layout.plain)
        name = f"{stack.prefix}.embed_tokens." if tied else "lm_head."
        weight = stack.weights.under(name)["weight"]
        narrow = weight.dtype == torch.float32 and stack.dtype != torch.float32
        self.weight = weight.to(device=stack.device, dtype=stack.dtype if narrow else weight.dtype)

    @property
    def vocabulary(self) -> int:
        return int(self.weight.shape[0])

    def logits(self, hidden: torch.Tensor) -> torch.Tensor:
        """Map ``[tokens, hidden]`` on any device to float32 ``[tokens, vocabulary]`` on the head's device.

        The weight is widened a part at a time, so there is no float32 copy of all of it.
        """
        states = hidden.to(device=self.weight.device, dtype=torch.float32)
        out = torch.empty(states.shape[0], self.vocabulary, dtype=torch.float32, device=self.weight.device)
        for start in range(0, self.vocabulary, _CHANNELS):
            channels = self.weight[start : start + _CHANNELS].to(torch.float32)
            out[:, start : start + _CHANNELS] = states @ channels.t()
        return out


class MtpHead:
    """The MTP head on the stack's device.

    Args:
        stack: gives embeddings, device and dtype.
        weights: where the head's tensors come from; by default the stack's weights.

    Raises:
        CheckpointError: the head is incomplete or does not fit.
    """

    def __init__(self, stack: TextStack, weights: Weights | None = None) -> None:
        from transformers.models.qwen3_5.modeling_qwen3_5 import Qwen3_5DecoderLayer

        self.stack = stack
        source = weights or stack.weights
        tensors = source.under("mtp.")
        _refuse_incomplete(source, tensors)
        hidden = int(stack.config.hidden_size)
        config = deepcopy(stack.config)
        config.layer_types, config.num_hidden_layers = ["full_attention"], 1
        layer = {k.removeprefix("layers.0."): v for k, v in tensors.items() if k.startswith("layers.0.")}
        self.layer = stack.fill(lambda: Qwen3_5DecoderLayer(config, 0), layer, "the MTP layer")
        self.fc = stack.fill(
            lambda: nn.Linear(2 * hidden, hidden, bias=False), {"weight": tensors["fc.weight"]}, "mtp.fc"
        )
        self.norms = {n: stack.norm({"weight": tensors[f"{n}.weight"]}, f"mtp.{n}") for n in _NORMS}
        self._config = config

    def run(self, hidden: torch.Tensor, tokens: torch.Tensor, drafts: int) -> list[torch.Tensor]:
        """Compute the hidden states of ``drafts`` successive draft steps from every position of given text.

        Args:
            hidden: ``[documents, length, hidden]``, final-normed states of the target model.
            tokens: int64 ``[documents, length]``, the text; every step is fed its true tokens.
            drafts: how many steps, fewer than ``length``.

        Returns:
            Step ``k`` (from 0) as ``[documents, length - drafts, hidden]``: at position ``i`` the draft of token
            ``i + k + 2``.
        """
        from transformers import DynamicCache

        count = hidden.shape[1] - drafts
        causal = torch.ones(count, count, dtype=torch.bool, device=self.stack.device).tril()
        own = torch.eye(count, dtype=torch.bool, device=self.stack.device)
        cache = DynamicCache(config=self._config)
        state, out = hidden[:, :count].to(self.stack.device), []
        with torch.inference_mode():
            for step in range(drafts):
                embedding = self.stack.embed(tokens[:, step + 1 : step + 1 + count])
                # A later step attends to the first step's keys up to its own position, and to the keys of its own
                # earlier drafts.
                mask = torch.cat([causal, *[own] * step], dim=1)[None, None]
                state = self._step(embedding, state, mask, step, cache)
                out.append(state)
        return out

    def _step(
        self, embedding: torch.Tensor, hidden: torch.Tensor, mask: torch.Tensor, shift: int, cache: Any
    ) -> torch.Tensor:
        joined = torch.cat(
            [self.norms["pre_fc_norm_embedding"](embedding), self.norms["pre_fc_norm_hidden"](hidden)], dim=-1
        )
        output = self.layer(
            self.fc(joined),
            position_embeddings=self.stack.rotary(joined.shape[1], shift),
            attention_mask=mask,
            past_key_values=cache,
        )
        normed: torch.Tensor = self.norms["norm"](output)
        return normed


def _refuse_incomplete(source: Weights, tensors: dict[str, torch.Tensor]) -> None:
    """Refuse tensors that are not exactly those of an MTP head of one layer.

    Raises:
        CheckpointError: some are missing, or there are others (more layers, embeddings of its own).
    """
    expected = {spec.name.removeprefix("mtp.") for spec in source.layout.mtp}
    layers = {name.split(".")[1] for name in expected if name.startswith("layers.")}
    if len(layers) != 1:
        raise CheckpointError(
            "config.json", f"declares {len(layers)} MTP layers; only MTP heads of one layer are supported"
        )
    for verb, names in (("lacks", expected - tensors.keys()), ("also has", tensors.keys() - expected)):
        if names:
            raise CheckpointError(
                "checkpoint",
                f"the MTP head {verb} mtp.{min(names)}, so it cannot be computed",
                remedy="Run: qwen36 check CHECKPOINT; or leave the head out with --drafts 0.",
            )
