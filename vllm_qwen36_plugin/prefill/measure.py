"""How long a linear takes by each path and number of rows, on this GPU."""

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
from .profile import GEMMS, PATHS, Card, GemmName, PathName, Profile, Starts, first_win
from .shape import Shape

# A path must be so much faster before it takes over: what is measured here scatters by 1 to 2 %.
MARGIN = 0.03
# What start-up measures: below 128 rows the stock kernels read the weight once, so there is nothing to win.
ROWS = (128, 256, 384, 512, 768, 1024, 2048, 4096, 8192)
Times = dict[str, dict[int, float]]
# So many seconds of calls, and so many calls at least, for each figure.
_SECONDS, _CALLS, _MOST_CALLS = 0.02, 3, 15
# Cycles a second, not to be fewer than any card has; seconds to spare for the events.
_CLOCK, _SPARE = 2.6e9, 3e-4


def card(device: torch.device, scratch_mib: int) -> Card:
    """This GPU and what else times depend on."""
    properties = torch.cuda.get_device_properties(device)
    return Card(properties.name, _driver(), versions(), scratch_mib)


def versions() -> dict[str, str]:
    """Of what brings or builds a kernel."""
    found = {"torch": torch.__version__, "cuda": str(torch.version.cuda), "python": platform.python_version()}
    for name in ("vllm", "triton", "vllm-qwen36-plugin"):
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            found[name] = "none"
    return found


def _driver() -> str:
    try:
        from vllm.third_party import pynvml

        pynvml.nvmlInit()
        found = pynvml.nvmlSystemGetDriverVersion()
    except Exception:  # noqa: BLE001 - without NVML the versions of the kernels must do
        return "unknown"
    return found.decode() if isinstance(found, bytes) else str(found)


def times_of(
    linear: Linear,
    tensors: Sequence[torch.Tensor],
    fp8_scales: torch.Tensor | None,
    rows: Iterable[int],
    paths: Sequence[PathName],
    tick: Callable[[], None] = lambda: None,
) -> Times:
    """Microseconds a call of the stock kernel and each path, medians, by number of rows.

    Where ``fp8`` may have another GEMM than vLLM's, ``fp8_vllm`` and so on in its place (`settled`). ``tick`` is
    called after each number of rows.
    """
    weight = linear.weight(tensors, fp8_scales)
    ways: dict[str, tuple[PathName, GemmName | None]] = {}
    for path in paths:
        if path == "fp8" and linear.gemms != ("vllm",):
            ways |= {f"fp8_{gemm}": (path, gemm) for gemm in linear.gemms}
        else:
            ways[path] = path, None
    found: Times = {name: {} for name in ("stock", *ways)}
    dtype = getattr(torch, linear.shape.dtype)
    for count in rows:
        x = torch.randn(count, linear.shape.k, dtype=dtype, device=weight.words.device)
        calls: dict[str, Callable[[], object]] = {"stock": partial(linear.stock, x, tensors)}
        calls |= {name: partial(linear.run, path, x, weight, gemm) for name, (path, gemm) in ways.items()}
        for name, us in _in_turns(calls).items():
            found[name][count] = us
        tick()
    return found


def _in_turns(calls: Mapping[str, Callable[[], object]]) -> dict[str, float]:
    """Median microseconds of each; they take turns, so that the clock's drift meets all of them.

    A round is queued behind an idle kernel that lasts until the host has queued it all: what is timed is the
    GPU's share alone, as in a CUDA graph or in a pass whose host is ahead. (On the host of an H100 a call of
    a part took 60 µs.)
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


def settled(times: Times) -> tuple[Times, Starts]:
    """Those times with one ``fp8``, and from how many rows each path wins.

    Of several GEMMs it has the one that takes the least share of the stock kernel's time, over all numbers of rows.
    """
    rivals = {gemm: times[f"fp8_{gemm}"] for gemm in GEMMS if f"fp8_{gemm}" in times}
    if not rivals:
        return times, starts_of(times)
    stock = times["stock"]
    gemm = min(rivals, key=lambda each: sum(us / stock[rows] for rows, us in rivals[each].items()))
    times = {**times, "fp8": rivals[gemm]}
    return times, replace(starts_of(times), fp8_gemm=gemm)


def starts_of(times: Times) -> Starts:
    """From how many rows each measured path wins. FP8 must beat whatever else serves those rows."""
    exact = first_win(times["stock"], times.get("exact", {}), MARGIN)
    best = dict(times["stock"])
    if exact is not None:
        best |= {rows: us for rows, us in times["exact"].items() if rows >= exact}
    return Starts(exact, first_win(best, times.get("fp8", {}), MARGIN))


def profile_of(shape: Shape, times: Times, starts: Starts, where: Card, took: float) -> Profile:
    """A profile of one shape's times; ``took``: seconds of measuring up to now."""
    stamp = time.strftime("%Y-%m-%d")
    source = f"measured: {where.gpu}, {stamp}, in {took:.1f} s"
    return Profile(source, {shape: starts}, where, {shape: times})


def measured_paths(linear: Linear) -> list[PathName]:
    """Those a table entry may take, in their order of definition."""
    return [path for path in PATHS if path in linear.order]
