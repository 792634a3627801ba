"""Times of calls in CUDA graphs, variants in turns so that clock and temperature drift meet all of them."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from statistics import median

import torch

Call = Callable[[], object]


def recorded(calls: Sequence[Call], device: str) -> Callable[[], None]:
    """All calls in a row as one CUDA graph; on a CPU, as they are.

    Called once before, so that what is compiled or allocated on first use is not recorded.
    """
    if not device.startswith("cuda"):
        return partial(_each, calls)
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        for call in calls:
            call()
    torch.cuda.current_stream().wait_stream(side)
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        for call in calls:
            call()
    return graph.replay  # type: ignore[no-any-return]


def _each(calls: Sequence[Call]) -> None:
    for call in calls:
        call()


def in_turns(runs: Mapping[str, Callable[[], None]], repeats: int, device: str) -> dict[str, list[float]]:
    """Seconds of every run, ``repeats`` of each; every round starts with another one.

    A round is queued as a whole behind an untimed run, so that the time to launch is not measured.
    """
    names = list(runs)
    found: dict[str, list[float]] = {name: [] for name in names}
    cuda = device.startswith("cuda")
    for round_ in range(repeats):
        turn = round_ % len(names)
        order = names[turn:] + names[:turn]
        runs[order[-1]]()
        for name, seconds in (_round_cuda if cuda else _round_cpu)(runs, order):
            found[name].append(seconds)
    return found


def _round_cuda(runs: Mapping[str, Callable[[], None]], order: Sequence[str]) -> list[tuple[str, float]]:
    events = [torch.cuda.Event(enable_timing=True) for _ in range(len(order) + 1)]
    events[0].record()
    for name, event in zip(order, events[1:], strict=True):
        runs[name]()
        event.record()
    torch.cuda.synchronize()
    return [(name, events[i].elapsed_time(events[i + 1]) / 1e3) for i, name in enumerate(order)]


def _round_cpu(runs: Mapping[str, Callable[[], None]], order: Sequence[str]) -> list[tuple[str, float]]:
    found = []
    for name in order:
        begin = time.perf_counter()
        runs[name]()
        found.append((name, time.perf_counter() - begin))
    return found


def spread(values: Sequence[float]) -> tuple[float, float]:
    """Median, and the median distance from it: one slow round moves neither."""
    middle = median(values)
    return middle, median(abs(value - middle) for value in values)
