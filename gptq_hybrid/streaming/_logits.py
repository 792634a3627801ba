"""Logits over a large vocabulary without a float32 copy of the output head."""

from __future__ import annotations

import torch

from ._stack import TextStack

# Rows of the output head that are widened to the arithmetic's dtype at once: 335 MB in float32 at 5,120.
_ROWS = 16_384


class OutputHead:
    """``lm_head`` (or the tied embedding) of a checkpoint.

    Kept on the device as stored (or as unpacked, in BF16), computed with in the stack's dtype.
    """

    def __init__(self, stack: TextStack) -> None:
        tied = not any(spec.name == "lm_head.weight" for spec in stack.weights.layout.plain)
        name = f"{stack.prefix}.embed_tokens." if tied else "lm_head."
        weight = stack.weights.under(name)["weight"]
        self._dtype = stack.dtype
        kept = (
            weight
            if weight.dtype != torch.float32 or stack.dtype == torch.float32
            else weight.to(stack.dtype)
        )
        self.weight = kept.to(stack.device)

    @property
    def vocabulary(self) -> int:
        return int(self.weight.shape[0])

    def logits(self, hidden: torch.Tensor) -> torch.Tensor:
        """``[tokens, hidden]`` on any device to float32 ``[tokens, vocabulary]`` on the head's."""
        given = hidden.to(device=self.weight.device, dtype=self._dtype)
        out = torch.empty(given.shape[0], self.vocabulary, dtype=torch.float32, device=self.weight.device)
        for start in range(0, self.vocabulary, _ROWS):
            rows = self.weight[start : start + _ROWS].to(self._dtype)
            out[:, start : start + _ROWS] = given @ rows.t()
        return out
