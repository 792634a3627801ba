"""What the GPU itself spends on a call: the sum over its kernels, whatever the host does meanwhile."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

# Of an engine's step: enough to see every GEMM by name.
_NAMED = 24


def kernel_ms(call: Callable[[], Any]) -> dict[str, float]:
    """By kernel, copies among them, the milliseconds that the GPU spent while ``call`` ran; empty without a GPU.

    From PyTorch's profiler, whose records of a replayed CUDA graph name every kernel in it.
    """
    import torch
    from torch.profiler import ProfilerActivity, profile

    if not torch.cuda.is_available():
        return {}
    torch.cuda.synchronize()
    with profile(activities=[ProfilerActivity.CUDA], acc_events=True) as profiler:
        call()
        torch.cuda.synchronize()
    return {event.key: event.self_device_time_total / 1e3 for event in profiler.key_averages()}


def step_kernels(one: Callable[[], Any], many: Callable[[], Any], steps: int) -> dict[str, Any]:
    """Milliseconds of kernels in a step: of ``many`` less those of ``one``, over ``steps``.

    ``total`` is of all of them, ``kernels`` names the longest. Empty without a GPU.
    """
    short, long = kernel_ms(one), kernel_ms(many)
    each = {name: (long.get(name, 0.0) - short.get(name, 0.0)) / steps for name in long | short}
    if not each:
        return {}
    most = sorted(each, key=lambda name: -each[name])[:_NAMED]
    return {
        "total": round(sum(each.values()), 5),
        "kernels": {name: round(each[name], 5) for name in most},
    }
