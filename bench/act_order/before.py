"""What computes the input of each linear in the model: as it is, with a gather behind it, and stored in order.

A gather reads places that the operation has just written, so torch.compile makes it a kernel of its own; a store in
order (`placed`, by the inverse permutation) can be the last step of the operation's.

Written as vLLM 0.26 writes them (`GemmaRMSNorm`, `RMSNormGated`, the gates of attention and MLP), compiled as it
compiles: one graph with a symbolic number of rows, guards dropped. As no guard tells two graphs of one function
apart, every variant is a function of its own.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Literal

import torch
from torch.nn import functional

Inputs = tuple[torch.Tensor, ...]
_EPS = 1e-6
_HEADS, _HEAD, _GDN_HEADS, _GDN_HEAD, _HIDDEN, _INTERMEDIATE = 24, 256, 48, 128, 5120, 17408


def placed(out: torch.Tensor, inverse: torch.Tensor) -> torch.Tensor:
    """Column i of ``out`` at column ``inverse[i]``."""
    return torch.empty_like(out).index_copy(-1, inverse, out)


def norm(x: torch.Tensor, residual: torch.Tensor, weight: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Before qkv and gate_up: residual add and RMSNorm; the sum goes on as the residual."""
    total = x.float() + residual.float()
    scaled = total * torch.rsqrt(total.pow(2).mean(-1, keepdim=True) + _EPS)
    return (scaled * (weight.float() + 1.0)).to(x.dtype), total.to(x.dtype)


def norm_gathered(
    x: torch.Tensor, residual: torch.Tensor, weight: torch.Tensor, order: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    out, total = norm(x, residual, weight)
    return out.index_select(-1, order), total


def norm_placed(
    x: torch.Tensor, residual: torch.Tensor, weight: torch.Tensor, inverse: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    out, total = norm(x, residual, weight)
    return placed(out, inverse), total


def norm_twice(
    x: torch.Tensor, residual: torch.Tensor, weight: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """Before qkvz: the same norm; in_proj_ba reads its output too, in natural order."""
    return norm(x, residual, weight)


def norm_twice_gathered(
    x: torch.Tensor, residual: torch.Tensor, weight: torch.Tensor, order: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    out, total = norm(x, residual, weight)
    return out.index_select(-1, order), total, out


def norm_twice_placed(
    x: torch.Tensor, residual: torch.Tensor, weight: torch.Tensor, inverse: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    out, total = norm(x, residual, weight)
    return placed(out, inverse), total, out


def gate(attention: torch.Tensor, q_gate: torch.Tensor) -> tuple[torch.Tensor]:
    """Before o: ``[M, 6144]`` times the sigmoid of the gate that lies beside q in ``[M, 24, 512]``."""
    opening = q_gate[..., _HEAD:].reshape(attention.shape)
    return (attention * torch.sigmoid(opening),)


def gate_gathered(attention: torch.Tensor, q_gate: torch.Tensor, order: torch.Tensor) -> tuple[torch.Tensor]:
    return (gate(attention, q_gate)[0].index_select(-1, order),)


def gate_placed(attention: torch.Tensor, q_gate: torch.Tensor, inverse: torch.Tensor) -> tuple[torch.Tensor]:
    return (placed(gate(attention, q_gate)[0], inverse),)


def gated_norm(core: torch.Tensor, z: torch.Tensor, weight: torch.Tensor) -> tuple[torch.Tensor]:
    """Before out: RMSNorm of each head of ``[M, 48, 128]`` times silu(z)."""
    flat = core.reshape(-1, core.shape[-1]).float()
    scaled = flat * torch.rsqrt(flat.pow(2).mean(-1, keepdim=True) + _EPS) * weight.float()
    gated = scaled * functional.silu(z.reshape(-1, z.shape[-1]).float())
    return (gated.to(core.dtype).reshape(core.shape).flatten(-2),)


def gated_norm_gathered(
    core: torch.Tensor, z: torch.Tensor, weight: torch.Tensor, order: torch.Tensor
) -> tuple[torch.Tensor]:
    return (gated_norm(core, z, weight)[0].index_select(-1, order),)


def gated_norm_placed(
    core: torch.Tensor, z: torch.Tensor, weight: torch.Tensor, inverse: torch.Tensor
) -> tuple[torch.Tensor]:
    return (placed(gated_norm(core, z, weight)[0], inverse),)


def silu_mul(gate_up: torch.Tensor) -> tuple[torch.Tensor]:
    """Before down. Nothing to gather: gate_up's columns are permuted on load."""
    half = gate_up.shape[-1] // 2
    return (functional.silu(gate_up[..., :half]) * gate_up[..., half:],)


Form = Literal["plain", "gathered", "placed"]
FUNCTIONS: dict[str, dict[Form, Callable[..., Inputs]]] = {
    "norm": {"plain": norm, "gathered": norm_gathered, "placed": norm_placed},
    "norm_twice": {"plain": norm_twice, "gathered": norm_twice_gathered, "placed": norm_twice_placed},
    "gate": {"plain": gate, "gathered": gate_gathered, "placed": gate_placed},
    "gated_norm": {"plain": gated_norm, "gathered": gated_norm_gathered, "placed": gated_norm_placed},
    "silu_mul": {"plain": silu_mul},
}


def inputs(name: str, m: int, device: str) -> tuple[Inputs, Inputs]:
    """Random BF16 inputs of one of `FUNCTIONS` for M rows: those with M rows, and weights."""

    def made(*shape: int) -> torch.Tensor:
        return torch.randn(shape, device=device, dtype=torch.bfloat16)

    if name in ("norm", "norm_twice"):
        return (made(m, _HIDDEN), made(m, _HIDDEN)), (made(_HIDDEN) * 0.1,)
    if name == "gate":
        return (made(m, _HEADS * _HEAD), made(m, _HEADS, 2 * _HEAD)), ()
    if name == "gated_norm":
        return (made(m, _GDN_HEADS, _GDN_HEAD), made(m, _GDN_HEADS, _GDN_HEAD)), (made(_GDN_HEAD),)
    return (made(m, 2 * _INTERMEDIATE),), ()


class Compiled:
    """The functions, compiled on first use."""

    def __init__(self, device: str) -> None:
        self._device = device
        self._done: dict[tuple[str, Form], Callable[..., Inputs]] = {}

    def get(self, name: str, form: Form, order: torch.Tensor | None = None) -> Callable[..., Inputs]:
        """``order``: as a function that permutes will be called with: the order, or its inverse, ``[k]``."""
        key = (name, form)
        if key not in self._done:
            options: dict[str, Any] = {"guard_filter_fn": lambda guards: [False for _ in guards]}
            compiled = torch.compile(FUNCTIONS[name][form], fullgraph=True, dynamic=False, options=options)
            rows, weights = inputs(name, 48, self._device)
            for tensor in rows:
                torch._dynamo.mark_dynamic(tensor, 0)
            compiled(*rows, *weights, *(() if order is None else (order,)))
            self._done[key] = compiled
        return self._done[key]
