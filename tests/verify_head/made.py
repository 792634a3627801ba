"""Output heads, copies of them in four bits, and hidden states."""

from __future__ import annotations

from typing import NamedTuple

import torch

from gptq_hybrid.packing import quantize_rtn

# Not a whole number of tiles; words of three groups.
N, K = 100, 768


class Copied(NamedTuple):
    """A weight ``[n, k]`` and what a 4-bit kernel multiplies with, both BF16."""

    weight: torch.Tensor
    copy: torch.Tensor

    def logits(self, hidden: torch.Tensor) -> torch.Tensor:
        """Of the copy."""
        return torch.nn.functional.linear(hidden, self.copy)

    def stock(self, hidden: torch.Tensor) -> torch.Tensor:
        """Of the weight."""
        return torch.nn.functional.linear(hidden, self.weight)


def head(n: int = N, k: int = K, *, whole: bool = False, seed: int = 0) -> Copied:
    """Normal weights, or whole numbers: sums of those have no rounding, so that equal logits are equal."""
    generator = torch.Generator().manual_seed(seed)
    weight = torch.randn(n, k, generator=generator)
    weight = (weight * 2).round().bfloat16() if whole else weight.bfloat16()
    codes, scales = quantize_rtn(weight, 4, 32, scale_dtype=torch.bfloat16)
    values = (codes.float() - 8).view(n, -1, 32) * scales.float()[..., None]
    return Copied(weight, values.view(n, k).bfloat16())


def states(rows: int, k: int = K, *, whole: bool = False, seed: int = 1) -> torch.Tensor:
    """BF16 ``[rows, k]``."""
    hidden = torch.randn(rows, k, generator=torch.Generator().manual_seed(seed))
    return (hidden * 2).round().bfloat16() if whole else hidden.bfloat16()
