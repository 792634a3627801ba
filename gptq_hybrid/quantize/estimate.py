"""Guess how long a run will take, from its size and from how fast this machine multiplies."""

from __future__ import annotations

import time
from dataclasses import dataclass

from gptq_hybrid.checkpoint import LinearSpec, TensorLayout

from .plan import RunPlan

# Seconds of the 27B's layers on one H200 with the recipe static-mse and 128 rows of 2,048 tokens
# (bench/quantize/default.json, variant `fast`): forward passes, and the rest, which is mostly the search and the
# solver.
_PASS_SECONDS, _REST_SECONDS = 1.95, 1.85
_PASS_TOKENS = 128 * 2048
# Multiplications and additions in those times, by the formulas below, and what that H200 does of them a second in
# a product of two matrices of 4,096 (torch 2.11, bfloat16; two runs: 692 and 698).
_PASS_WORK, _REST_WORK = 6.36e14, 1.22e13
_H200_RATE = 695e12
# On a CPU a product of small matrices comes closer to what large ones reach: fitted to runs of the demo's model.
_CPU_GAIN = 8.0
# Of that rate, what tuning comes to. Not measured on a GPU; on a CPU the small model takes about so long.
_TUNING_GAIN = 0.5
_OVERHEAD_SECONDS = 0.3
_TRIAL_SECONDS = 0.3


@dataclass(frozen=True, slots=True)
class Estimate:
    """How long a run may take: ``seconds``, and in ``source`` where that comes from, for people."""

    seconds: float
    source: str


def estimate_seconds(plan: RunPlan) -> Estimate:
    """Estimate a run from the loading of the model on; imports torch, and multiplies for half a second.

    Each linear runs twice over every token and adds the outer product of its input to a Hessian, whose inverse is
    then applied column by column: :func:`pass_work` and :func:`rest_work`.
    """
    rate, device = _measure_rate()
    gain = 1.0 if plan.memory.gpu is not None else _CPU_GAIN
    scale = _H200_RATE / (rate * gain)
    passes = _PASS_SECONDS * pass_work(plan.layout, plan.sizes.tokens) / _PASS_WORK
    rest = _REST_SECONDS * rest_work(plan.layout) / _REST_WORK
    seconds = (passes + rest) * scale + _OVERHEAD_SECONDS * len(plan.layout.quantized)
    if plan.sizes.tune is not None:
        seconds += plan.sizes.tune.work / (rate * _TUNING_GAIN)
    return Estimate(
        seconds,
        f"runs on one H200, scaled by {rate / 1e12:,.3g} TFLOP/s, which is what this {device} multiplies with",
    )


def pass_work(layout: TensorLayout, tokens: int) -> float:
    """Operations of the forward passes and the Hessians over so many tokens."""
    return float(tokens) * sum(
        4 * linear.in_features * linear.out_features + 2 * linear.in_features**2
        for linear in layout.quantized
    )


def rest_work(layout: TensorLayout) -> float:
    """Operations of the solver: a Cholesky inverse, and an update of each later column for each column."""
    return float(sum(_solve(linear) for linear in layout.quantized))


def _solve(linear: LinearSpec) -> float:
    return linear.in_features**3 + 2 * linear.in_features**2 * linear.out_features


def _measure_rate() -> tuple[float, str]:
    """Return operations a second of a product of two matrices, and what computed it."""
    import torch

    on_gpu = torch.cuda.is_available()
    size = 4096 if on_gpu else 1024
    kind = torch.bfloat16 if on_gpu else torch.float32
    device = "cuda" if on_gpu else "cpu"
    a = torch.randn(size, size, device=device).to(kind)
    count, begun = 0, time.perf_counter()
    while count < 2 or time.perf_counter() - begun < _TRIAL_SECONDS:
        a @ a
        count += 1
        if on_gpu:
            torch.cuda.synchronize()
        if count == 1:
            # The first one loads the library.
            begun = time.perf_counter()
    seconds = time.perf_counter() - begun
    return 2.0 * size**3 * (count - 1) / seconds, "GPU" if on_gpu else "CPU"
