"""A made-up result of ``qwen36 tune prefill`` for the 27B."""

from __future__ import annotations

from vllm_qwen36_plugin.prefill.measure import find_starts
from vllm_qwen36_plugin.prefill.profile import Card, Profile
from vllm_qwen36_plugin.prefill.shape import Shape
from vllm_qwen36_plugin.tune.prefill.result import Tuned
from vllm_qwen36_plugin.tune.prefill.shapes import read_linears

TOKENS = (64, 128, 256, 512, 1000, 1024, 1500, 2048, 3000, 4096, 8192)
CARD = Card("NVIDIA L40S", "580.1", {"vllm": "0.26.0", "torch": "2.11.0"}, 128)


def times(
    shape: Shape, counts: tuple[int, ...] = TOKENS, fp8: bool = True, a8: bool = False
) -> dict[str, dict[int, float]]:
    """Microseconds by formula: Marlin's 300 TFLOP/s against writing at 600 GB/s, then 360 and 600 TFLOP/s;
    a8 writes half a byte.
    """
    values = shape.k * shape.n / 1e6
    by_route = {
        "stock": {m: max(values / 2 / 0.7, values * m * 2 / 300) for m in counts},
        "exact": {m: values * (2.5 / 0.6 + m * 2 / 360) for m in counts},
        "a8": {m: values * (1.0 / 0.6 + m * 2 / 560) for m in counts},
        "fp8": {m: values * (1.5 / 0.6 + m * 2 / 600) for m in counts},
    }
    left_out = {route for route, measured in (("fp8", fp8), ("a8", a8)) if not measured}
    return {route: by for route, by in by_route.items() if route not in left_out}


def made_up(
    counts: tuple[int, ...] = TOKENS,
    *,
    fp8: bool = True,
    a8: bool = False,
    notes: tuple[str, ...] = (),
    slow: bool = False,
) -> Tuned:
    """As the command would have it; ``slow``: where nothing beats vLLM's kernel."""
    linears = {
        Shape("marlin", kind.k, kind.n, kind.bits, kind.group_size, "bfloat16"): kind
        for kind in read_linears(None)
    }
    every = {shape: times(shape, counts, fp8, a8) for shape in linears}
    if slow:
        every = {
            shape: by | {"stock": {m: us / 9 for m, us in by["stock"].items()}} for shape, by in every.items()
        }
    starts = {shape: find_starts(by) for shape, by in every.items()}
    source = "measured: NVIDIA L40S, 2026-11-27, by qwen36 tune prefill in 61 s"
    return Tuned(Profile(source, starts, CARD, every), linears, notes)
