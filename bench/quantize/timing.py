"""Where gptqmodel's time goes, layer by layer: its functions, wrapped for as long as a run lasts.

Inside a pass nothing waits for the GPU, or what overlaps would be pulled apart: a pass is timed as a whole, with
the GPU idle at both ends. Solvers of modules that share an input run side by side: what counts is how long any
was at work.
"""

from __future__ import annotations

import resource
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, contextmanager
from functools import wraps
from itertools import pairwise
from threading import Lock
from typing import Any

from bench.engine import wait
from bench.results import Json


class Watch:
    """Passes by layer, solvers and losses by module, of the runs within :meth:`watching`."""

    def __init__(self) -> None:
        self.passes: list[tuple[int, float, float]] = []  # layer, begin, end
        self.losses: dict[str, float | str] = {}
        self.solvers: list[tuple[float, float]] = []
        self.mixers = 0
        self._lock = Lock()

    @contextmanager
    def watching(self) -> Iterator[None]:
        """Wrap what is looked at; gptqmodel's own functions are back at the end."""
        from gptqmodel.looper.forward_executor import ForwardExecutor
        from gptqmodel.quantization.gptq import GPTQ
        from transformers.models.qwen3_5 import modeling_qwen3_5 as modeling

        with ExitStack() as stack:

            def wrap(owner: type, name: str, make: Callable[[Any], Any]) -> None:
                original = getattr(owner, name)
                setattr(owner, name, wraps(original)(make(original)))
                stack.callback(setattr, owner, name, original)

            for mixer in (modeling.Qwen3_5GatedDeltaNet, modeling.Qwen3_5Attention):
                wrap(mixer, "forward", self._counted)
            wrap(ForwardExecutor, "run_single", self._pass)
            wrap(GPTQ, "quantize", self._solved)
            yield

    def _counted(self, inner: Any) -> Any:
        def forward(*args: Any, **kwargs: Any) -> Any:
            self.mixers += 1
            return inner(*args, **kwargs)

        return forward

    def _pass(self, inner: Any) -> Any:
        def run_single(executor: Any, **call: Any) -> Any:
            wait()
            begin = time.perf_counter()
            out = inner(executor, **call)
            wait()
            self.passes.append((int(call["layer_index"]), begin, time.perf_counter()))
            return out

        return run_single

    def _solved(self, inner: Any) -> Any:
        from gptq_hybrid.upstream import module_name

        def quantize(solver: Any, *args: Any, **kwargs: Any) -> Any:
            wait()
            begin = time.perf_counter()
            out = inner(solver, *args, **kwargs)
            wait()
            with self._lock:
                self.solvers.append((begin, time.perf_counter()))
                self.losses[module_name(solver)] = out[5]
            return out

        return quantize

    def layers(self, end: float) -> Json:
        """By layer: seconds from its first pass to the next layer's (the last one's to ``end``), and in passes."""
        begins: dict[int, float] = {}
        passes: dict[int, float] = {}
        for layer, begin, done in self.passes:
            begins.setdefault(layer, begin)
            passes[layer] = passes.get(layer, 0.0) + done - begin
        edges = [*begins.values(), end]
        return {
            "layer_seconds": [round(after - before, 3) for before, after in pairwise(edges)],
            "pass_seconds": [round(seconds, 3) for seconds in passes.values()],
        }


def covered(intervals: Iterable[tuple[float, float]]) -> float:
    """Length of the union of intervals ``(begin, end)``."""
    total, reached = 0.0, float("-inf")
    for begin, end in sorted(intervals):
        total += max(0.0, end - max(begin, reached))
        reached = max(reached, end)
    return total


def peaks() -> dict[str, float]:
    """GiB at most so far: of this process in main memory; of tensors, and with what PyTorch holds, on the GPU."""
    import torch

    gib = {"cpu_gib": round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20, 2)}
    if torch.cuda.is_available():
        gib["gpu_gib"] = round(torch.cuda.max_memory_allocated() / 2**30, 2)
        gib["gpu_reserved_gib"] = round(torch.cuda.max_memory_reserved() / 2**30, 2)
    return gib
