"""Muon (Jordan et al., 2024): momentum, orthogonalized, for the matrices of a model."""

from __future__ import annotations

import torch
from torch import Tensor


def orthogonalize(update: Tensor) -> Tensor:
    """Newton-Schulz iteration toward the nearest orthogonal matrix, for a stack [n, rows, columns] (Muon)."""
    x = update.bfloat16() if update.is_cuda else update  # in BF16, CPUs without AVX-512 take minutes
    tall = x.shape[-2] > x.shape[-1]
    if tall:
        x = x.mT
    x = x / (x.norm(dim=(-2, -1), keepdim=True) + 1e-7)
    for a, b, c in 5 * ((3.4445, -4.7750, 2.0315),):
        gram = x @ x.mT
        x = a * x + (b * gram + c * gram @ gram) @ x
    return x.mT if tall else x


class Muon:
    """Momentum orthogonalized, matrices of one shape at a time; decoupled weight decay."""

    def __init__(self, parameters: list[torch.nn.Parameter]) -> None:
        self.groups: dict[torch.Size, list[torch.nn.Parameter]] = {}
        for p in parameters:
            self.groups.setdefault(p.shape, []).append(p)
        self.momenta = {s: torch.zeros(len(g), *s, device=g[0].device) for s, g in self.groups.items()}

    @torch.no_grad()
    def step(self, rate: float, decay: float, momentum: float = 0.95) -> None:
        """One update; clears the gradients."""
        for shape, group in self.groups.items():
            gradient = torch.stack([p.grad for p in group])
            buffer = self.momenta[shape]
            buffer.lerp_(gradient, 1 - momentum)
            update = orthogonalize(gradient.lerp(buffer, momentum)).float()
            torch._foreach_mul_(group, 1 - rate * decay)
            scale = rate * max(1.0, shape[0] / shape[1]) ** 0.5
            torch._foreach_add_(group, list(update.unbind()), alpha=-scale)
            for p in group:
                p.grad = None
