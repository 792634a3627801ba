"""What goes with a 4-bit copy of an output head: two more bits a weight, and by how much a logit of it can be off.

A logit of the copy is off by ``e·h``, ``e`` being the token's row of the weight less that of the copy. By
Cauchy and Schwarz that is at most ``|e| |h|``. The true size is some ``1/sqrt(k)`` of it, so four bits alone
exclude too few tokens where ``k`` is large. Each bit more halves ``|e|``.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch

# Inputs that are read at a time: with all of the 27B's tokens 130 MB of float32.
_COLUMNS = 128
# Of |w|: what a kernel's dequantized weight may be off from its product with a unit vector, which is rounded to
# BF16 (2**-8), and sums of up to 8,192 products in float32, in the copy's kernel and in the original's.
_SLACK = 2.0**-8 + 2.0**-10
# Codes of a word.
WORD = 16
_GROUPS = (64, 32, 16)


class Planes(NamedTuple):
    """For ``n`` tokens and ``k`` inputs.

    A weight is that of the copy plus ``scale * (code - 1.5)``. The code of input ``part * k // 16 + word`` is in
    bits ``2 * part`` and up of that word. An input's group is its number divided by ``group``.

    Attributes:
        words: int32 ``[n, k // 16]``.
        scales: BF16 ``[k // group, n]``.
        far: float32 ``[n]``; times ``|h|`` it bounds the error of the copy's logit.
        near: float32 ``[n]``; the same with the two bits added.
        group: inputs that share a scale.
    """

    words: torch.Tensor
    scales: torch.Tensor
    far: torch.Tensor
    near: torch.Tensor
    group: int

    @property
    def bytes(self) -> int:
        """Bytes of GPU memory."""
        return sum(part.numel() * part.element_size() for part in self[:4])


def make_planes(weight: torch.Tensor, product: Callable[[torch.Tensor], torch.Tensor]) -> Planes:
    """Measure the copy by its own kernel, and store what it lacks.

    Args:
        weight: BF16 ``[n, k]``.
        product: of the copy: ``[m, k]`` to ``[m, n]`` or wider.

    Raises:
        ValueError: a weight that is not BF16 or not finite, or inputs that 256 does not divide.
    """
    n, k = weight.shape
    if weight.dtype != torch.bfloat16:
        raise ValueError(f"the output head is {weight.dtype}, and not bfloat16")
    group = next((size for size in _GROUPS if k % (WORD * size) == 0), None)
    if group is None:
        raise ValueError(f"{k} inputs do not go in words of {WORD} and groups of {_GROUPS[-1]}")
    count = k // WORD
    words = torch.zeros(n, count, dtype=torch.int32, device=weight.device)
    scales = torch.empty(k // group, n, dtype=torch.bfloat16, device=weight.device)
    size, far, near = (torch.zeros(n, dtype=torch.float64, device=weight.device) for _ in range(3))
    step = next(width for width in (_COLUMNS, 64, 32, 16) if width % group == 0 and k % width == 0)
    for first in range(0, k, step):
        units = torch.zeros(step, k, dtype=weight.dtype, device=weight.device)
        units[torch.arange(step), first + torch.arange(step)] = 1
        copy = product(units)[:, :n].t().float()
        dense = weight[:, first : first + step].float()
        lacks = dense - copy
        size += dense.square().sum(dim=1)
        far += lacks.square().sum(dim=1)
        for start in range(0, step, group):
            part = lacks[:, start : start + group]
            # What four steps of equal width cover, if errors are spread evenly.
            scale = part.abs().mean(dim=1).clamp(min=2.0**-100).bfloat16()
            codes = (part / scale.float()[:, None] + 1.5).round().clamp(0, 3)
            near += (part - scale.float()[:, None] * (codes - 1.5)).square().sum(dim=1)
            at = first + start
            place = at % count
            words[:, place : place + group] |= codes.int() << (2 * (at // count))
            scales[at // group] = scale
    if not bool(far.isfinite().all()):
        raise ValueError("the output head or its copy is not finite")
    slack = size.sqrt() * _SLACK
    # Above what is lost in float32.
    far, near = ((error.sqrt() + slack) * (1 + 2.0**-20) for error in (far, near))
    return Planes(words, scales, far.float(), near.float(), group)
