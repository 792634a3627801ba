"""Where gptqmodel's time goes: its functions, wrapped for as long as a run lasts.

Inside a pass nothing waits for the GPU, or what overlaps would be pulled apart: Hessian products are timed by GPU
events, the pass as a whole on the clock with the GPU idle at both ends. Solvers of modules that share an input run
side by side: what counts is how long any was at work.
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

from bench.results import Json


def wait() -> None:
    """Until the GPU has done all it was given."""
    import torch

    if torch.cuda.is_available():
        torch.cuda.synchronize()


class Watch:
    """Seconds by stage, passes by layer, losses by module, of the runs within :meth:`watching`."""

    def __init__(self) -> None:
        self.passes: list[Json] = []
        self.losses: dict[str, float | str] = {}
        self.solvers: list[tuple[float, float]] = []
        self.sums = {"inverse": 0.0, "moves": 0.0, "finalize": 0.0}
        self._lock = Lock()
        self._products: list[Any] = []
        self._product_seconds = 0.0
        self._mixers = 0

    @contextmanager
    def watching(self) -> Iterator[None]:
        """Wrap what is looked at; gptqmodel's own functions are back at the end."""
        from gptqmodel.looper.forward_executor import ForwardExecutor
        from gptqmodel.looper.gptq_processor import GPTQProcessor
        from gptqmodel.models.base import BaseQModel
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
            wrap(GPTQ, "add_batch", self._product)
            wrap(GPTQ, "hessian_inverse", self._timed("inverse"))
            wrap(GPTQ, "quantize", self._solved)
            wrap(BaseQModel, "pre_quantize", self._timed("moves"))
            wrap(BaseQModel, "post_quantize", self._timed("moves"))
            wrap(GPTQProcessor, "submodule_finalize", self._timed("finalize", idle=False))
            yield

    def _counted(self, inner: Any) -> Any:
        def forward(*args: Any, **kwargs: Any) -> Any:
            self._mixers += 1
            return inner(*args, **kwargs)

        return forward

    def _pass(self, inner: Any) -> Any:
        def run_single(executor: Any, **call: Any) -> Any:
            wait()
            self._mixers, self._product_seconds = 0, 0.0
            begin = time.perf_counter()
            out = inner(executor, **call)
            wait()
            seconds = time.perf_counter() - begin
            products = self._product_seconds + sum(
                start.elapsed_time(end) / 1e3 for start, end in self._products
            )
            self._products.clear()
            self.passes.append(
                {
                    "layer": int(call["layer_index"]),
                    "begin": begin,
                    "seconds": round(seconds, 4),
                    "hessian": round(products, 4),
                    "mixers": self._mixers,
                }
            )
            return out

        return run_single

    def _product(self, inner: Any) -> Any:
        import torch

        def add_batch(solver: Any, inp: Any, *args: Any, **kwargs: Any) -> Any:
            if not inp.is_cuda:
                begin = time.perf_counter()
                out = inner(solver, inp, *args, **kwargs)
                self._product_seconds += time.perf_counter() - begin
                return out
            start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
            start.record()
            out = inner(solver, inp, *args, **kwargs)
            end.record()
            self._products.append((start, end))
            return out

        return add_batch

    def _timed(self, stage: str, *, idle: bool = True) -> Callable[[Any], Any]:
        """Adds what a call takes to ``stage``; ``idle``: with the GPU idle at both ends."""

        def make(inner: Any) -> Any:
            def timed(*args: Any, **kwargs: Any) -> Any:
                if idle:
                    wait()
                begin = time.perf_counter()
                out = inner(*args, **kwargs)
                if idle:
                    wait()
                with self._lock:
                    self.sums[stage] += time.perf_counter() - begin
                return out

            return timed

        return make

    def _solved(self, inner: Any) -> Any:
        from gptq_hybrid.compat._module_record import module_name

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

    def stages(self) -> dict[str, float]:
        """Seconds by stage but for ``save``.

        ``solver`` is how long any solver was at work, ``inverse`` the sum of what they took for inverses; ``moves``
        are a layer's weights on their way to the GPU and back; ``finalize`` is done by threads beside the rest.
        """
        hessian = sum(one["hessian"] for one in self.passes)
        found = {
            "forward": sum(one["seconds"] for one in self.passes) - hessian,
            "hessian": hessian,
            "solver": covered(self.solvers),
            **self.sums,
        }
        return {name: round(seconds, 3) for name, seconds in found.items()}

    def layer_passes(self) -> list[Json]:
        """By layer: how many passes, their seconds, those of Hessians, and batches that ran a mixer."""
        layers: dict[int, Json] = {}
        for one in self.passes:
            row = layers.setdefault(one["layer"], {"passes": 0, "seconds": 0.0, "hessian": 0.0, "mixers": 0})
            row["passes"] += 1
            for name in ("seconds", "hessian", "mixers"):
                row[name] = round(row[name] + one[name], 4)
        return list(layers.values())

    def layer_seconds(self, end: float) -> list[float]:
        """By layer, from its first pass to that of the next; the last one's to ``end`` (a ``perf_counter``)."""
        begins: dict[int, float] = {}
        for one in self.passes:
            begins.setdefault(one["layer"], one["begin"])
        edges = [*begins.values(), end]
        return [round(after - before, 3) for before, after in pairwise(edges)]


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

    found = {"cpu_gib": round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20, 2)}
    if torch.cuda.is_available():
        found["gpu_gib"] = round(torch.cuda.max_memory_allocated() / 2**30, 2)
        found["gpu_reserved_gib"] = round(torch.cuda.max_memory_reserved() / 2**30, 2)
    return found
