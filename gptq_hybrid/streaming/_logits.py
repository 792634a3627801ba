"""Logits over a large vocabulary without a float32 copy of the output head."""

from __future__ import annotations

import torch

from ._stack import TextStack

# Rows of the output head that are widened to float32 at once: 335 MB at 5,120.
_ROWS = 16_384


class OutputHead:
    """``lm_head`` (or the tied embedding) of a checkpoint, on the stack's device.

    Kept as stored; a packed one as unpacked, in float32 (5.1 GB at 27B), or in the stack's dtype if that is less.
    Computed with in float32 whatever the stack's dtype: BF16 products of the size of logits are off by 0.06, which
    alone makes a KL divergence of a thousandth.
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
        """``[tokens, hidden]`` on any device to float32 ``[tokens, vocabulary]`` on the head's."""
        given = hidden.to(device=self.weight.device, dtype=torch.float32)
        out = torch.empty(given.shape[0], self.vocabulary, dtype=torch.float32, device=self.weight.device)
        for start in range(0, self.vocabulary, _ROWS):
            rows = self.weight[start : start + _ROWS].to(torch.float32)
            out[:, start : start + _ROWS] = given @ rows.t()
        return out
