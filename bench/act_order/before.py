"""What computes the input of each linear in the model, with and without the gather behind it.

Written as vLLM 0.26 writes them (`GemmaRMSNorm`, `RMSNormGated`, the gates of attention and MLP), compiled as it
compiles: one graph with a symbolic number of rows, guards dropped. As no guard tells two graphs of one function
apart, every variant is a function of its own.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch.nn import functional

Inputs = tuple[torch.Tensor, ...]
_EPS = 1e-6
_HEADS, _HEAD, _GDN_HEADS, _GDN_HEAD, _HIDDEN, _INTERMEDIATE = 24, 256, 48, 128, 5120, 17408


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


def gate(attention: torch.Tensor, q_gate: torch.Tensor) -> tuple[torch.Tensor]:
    """Before o: ``[M, 6144]`` times the sigmoid of the gate that lies beside q in ``[M, 24, 512]``."""
    opening = q_gate[..., _HEAD:].reshape(attention.shape)
    return (attention * torch.sigmoid(opening),)


def gate_gathered(attention: torch.Tensor, q_gate: torch.Tensor, order: torch.Tensor) -> tuple[torch.Tensor]:
    return (gate(attention, q_gate)[0].index_select(-1, order),)


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


def silu_mul(gate_up: torch.Tensor) -> tuple[torch.Tensor]:
    """Before down. Nothing to gather: gate_up's columns are permuted on load."""
    half = gate_up.shape[-1] // 2
    return (functional.silu(gate_up[..., :half]) * gate_up[..., half:],)


FUNCTIONS: dict[str, tuple[Callable[..., Inputs], Callable[..., Inputs] | None]] = {
    "norm": (norm, norm_gathered),
    "norm_twice": (norm_twice, norm_twice_gathered),
    "gate": (gate, gate_gathered),
    "gated_norm": (gated_norm, gated_norm_gathered),
    "silu_mul": (silu_mul, None),
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
        self._done: dict[tuple[str, bool], Callable[..., Inputs]] = {}

    def get(self, name: str, gathered: bool, order: torch.Tensor | None = None) -> Callable[..., Inputs]:
        """``order``: as the gathered function will be called with, int32 ``[k]``."""
        key = (name, gathered)
        if key not in self._done:
            function = FUNCTIONS[name][gathered]
            assert function is not None
            options: dict[str, Any] = {"guard_filter_fn": lambda guards: [False for _ in guards]}
            compiled = torch.compile(function, fullgraph=True, dynamic=False, options=options)
            rows, weights = inputs(name, 48, self._device)
            for tensor in rows:
                torch._dynamo.mark_dynamic(tensor, 0)
            compiled(*rows, *weights, *((order,) if gathered else ()))
            self._done[key] = compiled
        return self._done[key]
