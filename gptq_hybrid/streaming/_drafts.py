"""The MTP head: drafts along given text. transformers has no such module; vLLM defines what it computes.

One step takes the final-normed hidden state of a position and the embedding of the token that follows it:
``fc([norm(embedding), norm(hidden)])``, one full-attention layer, a norm; ``lm_head`` then gives the draft of the
token after (vLLM, ``models/qwen3_5_mtp.py``). Further drafts feed the head's own output back in.
"""

from __future__ import annotations

from copy import deepcopy
from typing import Any

import torch
from torch import nn

from gptq_hybrid.common.errors import CheckpointError

from ._stack import TextStack
from ._weights import Weights

_NORMS = ("norm", "pre_fc_norm_embedding", "pre_fc_norm_hidden")


class DraftHead:
    """The MTP head of ``weights``, on the stack's device; ``stack`` gives embeddings and arithmetic.

    Raises:
        CheckpointError: the head is incomplete or does not fit.
    """

    def __init__(self, stack: TextStack, weights: Weights | None = None) -> None:
        from transformers.models.qwen3_5.modeling_qwen3_5 import Qwen3_5DecoderLayer

        self.stack = stack
        source = weights or stack.weights
        tensors = _complete(source, source.under("mtp."))
        hidden = int(stack.config.hidden_size)
        config = deepcopy(stack.config)
        config.layer_types, config.num_hidden_layers = ["full_attention"], 1
        layer = {k.removeprefix("layers.0."): v for k, v in tensors.items() if k.startswith("layers.0.")}
        self.layer = stack.filled(lambda: Qwen3_5DecoderLayer(config, 0), layer, "the MTP layer")
        self.fc = stack.filled(
            lambda: nn.Linear(2 * hidden, hidden, bias=False), {"weight": tensors["fc.weight"]}, "mtp.fc"
        )
        self.norms = {n: stack.norm({"weight": tensors[f"{n}.weight"]}, f"mtp.{n}") for n in _NORMS}
        self._config = config

    def run(self, hidden: torch.Tensor, tokens: torch.Tensor, drafts: int) -> list[torch.Tensor]:
        """Hidden states of ``drafts`` successive draft steps from every position of given text.

        Args:
            hidden: ``[documents, length, hidden]``, final-normed states of the target.
            tokens: int64 ``[documents, length]``, the text; every step is fed its true tokens.
            drafts: how many, fewer than ``length``.

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
                # A later step sees the first step's keys up to its own position, and its own draft's so far.
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


def _complete(source: Weights, tensors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """``tensors``, if they are what a head of one layer has.

    Raises:
        CheckpointError: some are missing, or there are others (more layers, embeddings of its own).
    """
    wanted = {spec.name.removeprefix("mtp.") for spec in source.layout.mtp}
    layers = {name.split(".")[1] for name in wanted if name.startswith("layers.")}
    if len(layers) != 1:
        raise CheckpointError(
            "config.json", f"declares {len(layers)} MTP layers; only heads of one are known"
        )
    for what, names in (("lacks", wanted - tensors.keys()), ("also has", tensors.keys() - wanted)):
        if names:
            raise CheckpointError(
                "checkpoint",
                f"the MTP head {what} mtp.{min(names)}, and cannot be computed with",
                remedy="Run: qwen36 check CHECKPOINT; or leave the head out with --drafts 0.",
            )
    return tensors
