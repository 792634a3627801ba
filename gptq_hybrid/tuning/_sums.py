"""Sums over the tokens of a text, all that a linear's codes are found from."""

from __future__ import annotations

from collections.abc import Iterable

import torch

from gptq_hybrid.streaming import Batch


class Sums:
    """Sums over tokens for linears that share their input. Tokens need not be kept, nor seen twice.

    Attributes:
        hessian: float32 ``[in_features, in_features]``, ``X Xᵀ`` of the inputs; None before the first tokens.
        products: float32 ``[out_features, in_features]``, ``T Xᵀ`` of each linear's targets, by its name.
    """

    def __init__(self) -> None:
        self.hessian: torch.Tensor | None = None
        self.products: dict[str, torch.Tensor] = {}

    def add(self, inputs: torch.Tensor, targets: Iterable[tuple[str, torch.Tensor]]) -> None:
        """Take in the rounded model's inputs ``[tokens, in_features]``, and outputs that linears should have."""
        inputs = inputs.float()
        square = inputs.t() @ inputs
        self.hessian = square if self.hessian is None else self.hessian.add_(square)
        for name, target in targets:
            product = target.float().t() @ inputs
            self.products[name] = self.products[name].add_(product) if name in self.products else product


def without_padding(batch: Batch, hidden: torch.Tensor) -> torch.Tensor:
    """Return ``[tokens, channels]`` of ``[documents, length, channels]``, without what is padding."""
    kept = torch.arange(hidden.shape[1])[None] < torch.tensor(batch.lengths)[:, None]
    return hidden[kept.to(hidden.device)]
