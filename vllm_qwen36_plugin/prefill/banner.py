"""The log line about prefill: which linears take a dense route, and from how many tokens on."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING

from .guard import LIMIT

if TYPE_CHECKING:
    from .dispatch import Linear
    from .guard import Guard
    from .pace import Pace
    from .profile import GemmName, Ranges, Route
    from .settings import Settings

# Layers that are named one by one.
_NAMED = 8


def gemm_suffix(gemm: GemmName) -> str:
    """Words that tell ``fp8`` with another library's GEMM from ``fp8`` with vLLM's; empty for vLLM's."""
    return "" if gemm == "vllm" else f" by {gemm}'s GEMM"


def table_line(linears: Iterable[Linear], settings: Settings, source: str) -> str:
    """Write one line: the routes of each shape, their starts, and the ``source`` of these numbers."""
    parts: list[str] = []
    linears = sorted(linears, key=lambda linear: linear.shape)
    # The linears of an MTP head are in other bits and may have a shape that the model has too.
    several_bits = len({linear.shape.bits for linear in linears}) > 1
    for linear in linears:
        served = [_ranges(linear.starts.humming)] if linear.starts.humming else []
        served += [
            f"{route}{_how(linear, route)} from {start}"
            for route in linear.routes
            if (start := getattr(linear.starts, route)) is not None
        ]
        bits = f" w{linear.shape.bits}" if several_bits else ""
        parts.append(f"{linear.shape.k}x{linear.shape.n}{bits} {' and '.join(served) or 'stock'}")
    layouts = "/".join(sorted({linear.shape.layout for linear in linears})) or "none"
    # A profile that somebody measured with it says so; nothing is measured for this line.
    offered = [linear.starts.a8 for linear in linears if linear.starts.a8 is not None]
    hint = (
        f"; prefill=a8 was faster from {min(offered)} tokens on"
        if settings.mode == "auto" and offered
        else ""
    )
    return (
        f"vllm-qwen36-plugin: prefill={settings.mode}, number of tokens from which a linear ({layouts} weights) "
        f"takes another route than vLLM's kernel: {'; '.join(parts) or 'none'} ({source or 'no profile'}; "
        f"scratch {settings.scratch_bytes >> 20} MiB){hint}"
    )


def guard_line(guard: Guard) -> str:
    """Write one line: which layers keep activations of 16 bits, of how many."""
    errors, kept = guard.errors(), guard.kept()
    most = max((error for error in errors.values() if error is not None), default=0.0)
    which = f": {', '.join(kept)}" if 0 < len(kept) <= _NAMED else ""
    return (
        f"vllm-qwen36-plugin: {len(kept)} of {len(errors)} linears keep activations of 16 bits{which}; with 8 "
        f"their results on the first prompts were off by up to {most:.2%} (limit {LIMIT:.2%})"
    )


def pace_line(host: Pace) -> str:
    """Write one line: from how many tokens on a pass outside CUDA graphs leaves vLLM's kernel on this host."""
    return (
        f"vllm-qwen36-plugin: outside CUDA graphs linears leave vLLM's kernel from {host.eager_from} tokens on: "
        f"this host takes {(host.layer_us or 0.0) / 1e3:.2f} ms to launch a layer"
    )


def _how(linear: Linear, route: Route) -> str:
    """Words for how a route multiplies, if there is more than one way."""
    if route == "a8":
        return f" ({linear.eight_bit.name.partition(' ')[0]})" if linear.eight_bit else ""
    return gemm_suffix(linear.starts.fp8_gemm) if route == "fp8" else ""


def _ranges(ranges: Ranges) -> str:
    """Words for the numbers of tokens that Humming's kernel takes."""
    each = (f"{first}-{last}" if last is not None else f"{first} on" for first, last in ranges)
    return f"humming for {', '.join(each)}"
