"""Measure how long a linear takes by each route and number of tokens on this GPU."""

from __future__ import annotations

import platform
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from importlib.metadata import PackageNotFoundError, version
from statistics import median

import torch

from .dispatch import Linear
from .profile import GEMMS, ROUTES, Card, GemmName, Profile, Route, Starts, first_win, winning_ranges
from .shape import Shape

# A route must be so much faster before it takes over: figures measured here scatter by 1 to 2 %.
MARGIN = 0.03
# Numbers of tokens that start-up measures. Below 128 the stock kernels read the weight once: a route cannot win.
TOKENS = (128, 256, 384, 512, 768, 1024, 2048, 4096, 8192)
# Those of decoding and of verifying drafts, where another kernel may: tiles end at them.
FEW_TOKENS = (4, 8, 16, 32, 48, 64, 96)
Times = dict[str, dict[int, float]]
# Each figure takes so many seconds of calls, with a least and a greatest number of calls.
_SECONDS, _CALLS, _MOST_CALLS = 0.02, 3, 15
# Calls a way whose host is timed, and seconds that the GPU is kept busy for a round of them.
_HOST_CALLS, _HOST_IDLE = 9, 2e-3
# Cycles a second, at least those of any card; seconds to spare for the events.
_CLOCK, _SPARE = 2.6e9, 3e-4


def card(device: torch.device, scratch_mib: int) -> Card:
    """Describe this GPU and everything else that times depend on."""
    properties = torch.cuda.get_device_properties(device)
    return Card(properties.name, _driver(), versions(), scratch_mib)


def versions() -> dict[str, str]:
    """List the versions of every package that ships or builds a kernel."""
    result = {
        "torch": torch.__version__,
        "cuda": str(torch.version.cuda),
        "python": platform.python_version(),
    }
    for name in ("vllm", "triton", "humming-kernels", "vllm-qwen36-plugin"):
        try:
            result[name] = version(name)
        except PackageNotFoundError:
            result[name] = "none"
    return result


def _driver() -> str:
    try:
        from vllm.third_party import pynvml

        pynvml.nvmlInit()
        driver = pynvml.nvmlSystemGetDriverVersion()
    except Exception:  # noqa: BLE001 - without NVML the versions of the kernels must do
        return "unknown"
    return driver.decode() if isinstance(driver, bytes) else str(driver)


def time_routes(
    linear: Linear,
    tensors: Sequence[torch.Tensor],
    fp8_scales: torch.Tensor | None,
    counts: Iterable[int],
    routes: Sequence[Route],
    tick: Callable[[], None] = lambda: None,
) -> Times:
    """Time a call of the stock kernel and of each route.

    Args:
        linear: the entry of the dispatch table.
        tensors: those of one layer.
        fp8_scales: its FP8 scales, or None.
        counts: numbers of tokens; where Humming's kernel is there, `FEW_TOKENS` come before.
        routes: besides ``"stock"``.
        tick: called after each number of tokens.

    Returns:
        Median microseconds by route and number of tokens. If ``fp8`` may use another GEMM than vLLM's, there is
        ``fp8_vllm`` and so on in its place (:func:`settle`).
    """
    weight = linear.weight(tensors, fp8_scales)
    candidates: dict[str, tuple[Route, GemmName | None]] = {}
    for route in routes:
        if route == "fp8" and linear.gemms != ("vllm",):
            candidates |= {f"fp8_{gemm}": (route, gemm) for gemm in linear.gemms}
        else:
            candidates[route] = route, None
    humming = ("humming",) if linear.humming is not None else ()
    times: Times = {name: {} for name in ("stock", *humming, *candidates)}
    dtype = getattr(torch, linear.shape.dtype)
    for tokens in (*(FEW_TOKENS if humming else ()), *counts):
        x = torch.randn(tokens, linear.shape.k, dtype=dtype, device=weight.words.device)
        calls: dict[str, Callable[[], object]] = {"stock": partial(linear.stock, x, tensors)}
        if linear.humming is not None:
            calls["humming"] = partial(linear.humming, x, weight.words, weight.scales)
        if tokens not in FEW_TOKENS:
            calls |= {
                name: partial(linear.run, route, x, weight, gemm)
                for name, (route, gemm) in candidates.items()
            }
        for name, us in in_turns(calls).items():
            times[name][tokens] = us
        tick()
    return times


def host_costs(
    linear: Linear, tensors: Sequence[torch.Tensor], fp8_scales: torch.Tensor | None, tokens: int = 1024
) -> dict[str, float]:
    """Time how long the host takes for a call of each way that `linear` may take: microseconds, medians.

    The GPU is kept busy meanwhile, as in a pass: the host waits for nothing.
    """
    weight = linear.weight(tensors, fp8_scales)
    x = torch.randn(
        tokens, linear.shape.k, dtype=getattr(torch, linear.shape.dtype), device=weight.words.device
    )
    calls: dict[str, Callable[[], object]] = {"stock": partial(linear.stock, x, tensors)}
    ways = (*(("humming",) if linear.starts.humming else ()), *routes_to_measure(linear))
    calls |= {way: partial(linear.run, way, x, weight) for way in ways}
    took: dict[str, list[float]] = {way: [] for way in calls}
    for turn in range(_HOST_CALLS + 1):
        torch.cuda.synchronize()
        torch.cuda._sleep(int(_HOST_IDLE * _CLOCK))
        for way, call in calls.items():
            begin = time.perf_counter()
            call()
            if turn:
                took[way].append((time.perf_counter() - begin) * 1e6)
    torch.cuda.synchronize()
    return {way: median(each) for way, each in took.items()}


def in_turns(calls: Mapping[str, Callable[[], object]]) -> dict[str, float]:
    """Time each call: median microseconds. They take turns, so that a drift of the clock affects all of them.

    A round is queued behind an idle kernel that lasts until the host has queued all of it. So the GPU alone is
    timed, as in a CUDA graph or in a pass whose host is ahead. (On the host of an H100 a call of one part took
    60 µs.)
    """
    for call in calls.values():
        call()
    torch.cuda.synchronize()
    begin = time.perf_counter()
    for call in calls.values():
        call()
    queued = time.perf_counter() - begin
    torch.cuda.synchronize()
    once = time.perf_counter() - begin
    repeats = max(_CALLS, min(_MOST_CALLS, int(_SECONDS / max(once, 1e-6))))
    idle = int((queued + _SPARE) * _CLOCK)
    events: dict[str, list[tuple[torch.cuda.Event, torch.cuda.Event]]] = {name: [] for name in calls}
    for _ in range(repeats):
        torch.cuda._sleep(idle)
        for name, call in calls.items():
            pair = (torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True))
            pair[0].record()
            call()
            pair[1].record()
            events[name].append(pair)
        torch.cuda.synchronize()
    return {
        name: median(begin.elapsed_time(end) for begin, end in pairs) * 1e3 for name, pairs in events.items()
    }


def settle(times: Times) -> tuple[Times, Starts]:
    """Choose the GEMM of ``fp8`` and find where each route starts to win.

    The GEMM is the one with the least share of the stock kernel's time, summed over all numbers of tokens.

    Returns:
        The times, with that GEMM's as ``fp8``; and the starts.
    """
    rivals = {gemm: times[f"fp8_{gemm}"] for gemm in GEMMS if f"fp8_{gemm}" in times}
    if not rivals:
        return times, find_starts(times)
    stock = times["stock"]
    gemm = min(rivals, key=lambda each: sum(us / stock[tokens] for tokens, us in rivals[each].items()))
    times = {**times, "fp8": rivals[gemm]}
    return times, replace(find_starts(times), fp8_gemm=gemm)


def find_starts(times: Times) -> Starts:
    """Find what wins from how many tokens on; each route must beat whichever else serves those."""
    best = dict(times["stock"])
    other = times.get("humming", {})
    humming = winning_ranges(best, other, MARGIN)
    best |= {tokens: us for tokens, us in other.items() if us <= best[tokens] * (1 - MARGIN)}
    exact = first_win(best, times.get("exact", {}), MARGIN)
    if exact is not None:
        best |= {tokens: us for tokens, us in times["exact"].items() if tokens >= exact}
    fp8, a8 = (first_win(best, times.get(route, {}), MARGIN) for route in ("fp8", "a8"))
    return Starts(exact, fp8, humming=humming, a8=a8)


def make_profile(shape: Shape, times: Times, starts: Starts, measured_on: Card, seconds: float) -> Profile:
    """Make a profile of one shape; ``seconds`` is the time spent on measuring up to now."""
    stamp = time.strftime("%Y-%m-%d")
    source = f"measured: {measured_on.gpu}, {stamp}, in {seconds:.1f} s"
    return Profile(source, {shape: starts}, measured_on, {shape: times})


def routes_to_measure(linear: Linear) -> list[Route]:
    """List the routes that a table entry may take, in their order of definition."""
    return [route for route in ROUTES if route in linear.routes]
