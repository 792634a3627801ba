"""What the kernels do, in PyTorch: for CPUs, and to hold the kernels against."""

from __future__ import annotations

import torch

from .planes import WORD, Planes

_TOKENS = 1 << 13


def settle(
    logits: torch.Tensor,
    hidden: torch.Tensor,
    weight: torch.Tensor,
    planes: Planes,
    found: torch.Tensor,
    listed: torch.Tensor,
) -> None:
    """As `kernel.settle`."""
    h = hidden.float()
    norm = h.norm(dim=1, keepdim=True)
    best = weight[logits.argmax(dim=-1)].float()
    logit = (h * best).sum(dim=1, keepdim=True)
    reach = logit - logit.abs() / 128 - norm * best.norm(dim=1, keepdim=True) / 1024
    copied = logits.float()
    rounded = copied.abs() / 256
    may = ~(copied + rounded + norm * planes.far < reach)
    # Not in tiles: tokens that no row asks about keep the copy's logit.
    tokens = may.any(dim=0).nonzero().squeeze(1)
    for part in tokens.split(_TOKENS):
        near = copied[:, part] + h @ _more(planes, part).t()
        may[:, part] = ~(near + rounded[:, part] + norm * planes.near[part] < reach)
        logits[:, part] = near.to(logits.dtype)
    places = may.nonzero()
    found.fill_(len(places))
    if len(places) > len(listed):
        logits.copy_(torch.nn.functional.linear(hidden, weight))
        return
    listed[: len(places)] = (places[:, 0] * len(weight) + places[:, 1]).to(listed.dtype)
    for rows, at in zip(places[:, 0].split(_TOKENS), places[:, 1].split(_TOKENS), strict=True):
        logits[rows, at] = (h[rows] * weight[at].float()).sum(dim=1).to(logits.dtype)


def _more(planes: Planes, tokens: torch.Tensor) -> torch.Tensor:
    """Return what the two bits add to the weights of ``tokens``: float32 ``[tokens, k]``."""
    words = planes.words[tokens]
    shifts = 2 * torch.arange(WORD, dtype=torch.int32)
    codes = (words[:, None, :] >> shifts[:, None] & 3).flatten(1)
    return (codes.float() - 1.5) * planes.scales[:, tokens].t().float().repeat_interleave(planes.group, dim=1)
