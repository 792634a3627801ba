"""What computes the input of each linear in the model: as it is, with a gather behind it, or in order by itself.

torch.compile computes the norm before qkv and gate_up at the permuted column, in one kernel. How fast that
kernel is depends on how the gather is said (torch 2.11, generated Triton for sm_90): `gathered` is
index_select, which comes with a check of every index; `unchecked` is the same without that check; `strided`
also reads the order with a stride of two, whereby its load gets the layout of the loads that it is for, and
three tensors of addresses need not go through shared memory. (A store in order, `empty_like(x).index_copy(-1,
inverse, x)`, was measured 0.33 ms a pass slower than `gathered` at M = 1: gemm-placed.json.) `in_order` is the
plugin's own kernel, which reads each input once (`act_order.norm`); with it in_proj_ba reads in order as well.

Written as vLLM 0.26 writes them (`GemmaRMSNorm`, `RMSNormGated`, the gates of attention and MLP), compiled as it
compiles: one graph with a symbolic number of rows, guards dropped. As no guard tells two graphs of one function
apart, every variant is a function of its own.
"""

from __future__ import annotations

from collections.abc import Callable
from types import FunctionType
from typing import Any, Literal

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


def norm_in_order(
    x: torch.Tensor, residual: torch.Tensor, weight: torch.Tensor, order: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """The same as `norm_gathered` by one op, which `Compiled` or whoever calls it has registered."""
    found: tuple[torch.Tensor, torch.Tensor] = torch.ops.qwen36.add_norm_in_order.default(
        x, residual, weight, order, _EPS
    )
    return found


def norm_twice_in_order(
    x: torch.Tensor, residual: torch.Tensor, weight: torch.Tensor, order: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """One output for both readers: the columns of in_proj_ba are permuted on load."""
    found: tuple[torch.Tensor, torch.Tensor] = torch.ops.qwen36.add_norm_in_order.default(
        x, residual, weight, order, _EPS
    )
    return found


Form = Literal["plain", "gathered", "unchecked", "strided", "in_order"]
PERMUTING: tuple[Form, ...] = ("gathered", "unchecked", "strided", "in_order")


def permuting(name: str) -> list[Form]:
    """The forms of one of `FUNCTIONS` that permute."""
    return [form for form in PERMUTING if form in FUNCTIONS[name]]


def with_stride(order: torch.Tensor) -> torch.Tensor:
    """The same numbers, every second one of a buffer."""
    found = order.new_zeros(len(order), 2)[:, 0]
    return found.copy_(order)


def _taking(plain: Callable[..., Inputs], form: Form) -> Callable[..., Inputs]:
    """``plain`` with its first output taken at the order, without a check of the indices."""

    def function(*arguments: torch.Tensor) -> Inputs:
        *given, order = arguments
        out, *others = plain(*given)
        taken = torch.ops.aten._unsafe_index.Tensor(out, [None] * (out.dim() - 1) + [order])
        # norm_twice: what reads its output in natural order too, needs that as well.
        return (taken, *others, out) if plain is norm_twice else (taken, *others)

    # Dynamo keeps what it compiles by code object.
    name = f"{plain.__name__}_{form}"
    return FunctionType(function.__code__.replace(co_name=name), globals(), name, None, function.__closure__)


FUNCTIONS: dict[str, dict[Form, Callable[..., Inputs]]] = {
    name: {
        "plain": plain,
        "gathered": gathered,
        "unchecked": _taking(plain, "unchecked"),
        "strided": _taking(plain, "strided"),
    }
    for name, plain, gathered in (
        ("norm", norm, norm_gathered),
        ("norm_twice", norm_twice, norm_twice_gathered),
        ("gate", gate, gate_gathered),
        ("gated_norm", gated_norm, gated_norm_gathered),
    )
}
FUNCTIONS["norm"]["in_order"] = norm_in_order
FUNCTIONS["norm_twice"]["in_order"] = norm_twice_in_order
FUNCTIONS["silu_mul"] = {"plain": silu_mul}


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
        from vllm_qwen36_plugin.act_order.norm import register_ops

        register_ops()

    def get(self, name: str, form: Form, order: torch.Tensor | None = None) -> Callable[..., Inputs]:
        """``order``: as a function that permutes will be called with, int32 ``[k]``; strided if ``strided``."""
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
