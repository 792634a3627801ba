"""The chunked gated delta rule in plain torch, to be compiled.

flash-linear-attention 0.6.0 refuses its backward pass on a Hopper GPU with the Triton of torch 2.11, 3.6 (wrong
results, says its message, and asks for 3.7.1 or later).
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor

_CHUNK = 64  # tokens computed at once


def _product(x: Tensor, y: Tensor) -> Tensor:
    """Matrix product; tiny ones as a sum that the compiler fuses."""
    return x @ y if x.shape[-1] > 8 else (x[..., None] * y[..., None, :, :]).sum(-2)


def _unit_lower_inverse(lower: Tensor) -> Tensor:
    """By halves: the inverse of [[A, 0], [B, C]] is [[A', 0], [-C' B A', C']]; as stable as substitution."""
    n, size = lower.shape[-1], 1
    inverse = lower.new_ones(*lower.shape[:-2], n, 1, 1)  # of the diagonal blocks
    while size < n:
        pairs = (n // size // 2, 2 * size)
        blocks = lower.unflatten(-1, pairs).unflatten(-3, pairs).diagonal(dim1=-4, dim2=-2).movedim(-1, -3)
        a, c = inverse[..., 0::2, :, :], inverse[..., 1::2, :, :]
        corner = -_product(_product(c, blocks[..., size:, :size]), a)
        inverse = torch.cat((torch.cat((a, torch.zeros_like(a)), -1), torch.cat((corner, c), -1)), -2)
        size *= 2
    return inverse.squeeze(-3)


class _UnitLowerInverse(torch.autograd.Function):
    """(I + L)^-1 of strictly lower triangular matrices [..., n, n]."""

    @staticmethod
    def forward(ctx: Any, lower: Tensor) -> Tensor:
        inverse = _unit_lower_inverse(lower)
        ctx.save_for_backward(inverse)
        return inverse

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        (inverse,) = ctx.saved_tensors
        return -(inverse.mT @ gradient @ inverse.mT).tril(-1)


def delta_rule(q: Tensor, k: Tensor, v: Tensor, g: Tensor, beta: Tensor) -> Tensor:
    """Gated delta rule, S <- e^g S + beta k (v - k S)^T, in chunks (Yang et al., Gated Delta Networks, 2024).

    q, k: [batch, length, key heads, key dim], not normalized; v: [batch, length, value heads, value dim]; g (log
    decay) and beta: [batch, length, value heads]. Returns [batch, length, value heads, value dim].
    """
    length, groups = q.shape[1], v.shape[2] // q.shape[2]
    q = q * torch.rsqrt((q * q).sum(-1, keepdim=True) + 1e-6) * q.shape[-1] ** -0.5
    k = k * torch.rsqrt((k * k).sum(-1, keepdim=True) + 1e-6)

    def chunked(x: Tensor, repeats: int = 1) -> Tensor:
        x = F.pad(x.transpose(1, 2), (0, 0, 0, -length % _CHUNK)).repeat_interleave(repeats, 1)
        return x.unflatten(2, (-1, _CHUNK))

    q, k, v = chunked(q, groups), chunked(k, groups), chunked(v)
    g, beta = chunked(g[..., None]).cumsum(-2), chunked(beta[..., None])
    decay = (g - g.mT).tril().exp().tril()  # of what key j left when query i comes
    lower = (beta * (k @ k.mT) * decay).tril(-1)
    inverse = _UnitLowerInverse.apply(lower)
    values, keys = inverse @ (beta * v), inverse @ (beta * g.exp() * k)
    attention = (q @ k.mT) * decay
    q, k = q * g.exp(), k * (g[..., -1:, :] - g).exp()
    kept = g[..., -1:, :].exp()
    state = q.new_zeros(*q.shape[:2], q.shape[-1], v.shape[-1])
    out = []
    for i in range(q.shape[2]):
        new = values[:, :, i] - keys[:, :, i] @ state
        out.append(q[:, :, i] @ state + attention[:, :, i] @ new)
        state = state * kept[:, :, i] + k[:, :, i].mT @ new
    return torch.cat(out, 2).transpose(1, 2)[:, :length]
