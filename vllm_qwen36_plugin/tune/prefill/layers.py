"""One linear of each kind as vLLM would load it, on this GPU, and its times."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, fields
from statistics import median
from tempfile import TemporaryDirectory
from types import SimpleNamespace
from typing import Any

import torch

from vllm_qwen36_plugin.architectures import TARGETS
from vllm_qwen36_plugin.log import logger
from vllm_qwen36_plugin.options import SECTION
from vllm_qwen36_plugin.prefill import dispatch, measure, prepare, scratch
from vllm_qwen36_plugin.prefill.kernel import RowDispatchKernel
from vllm_qwen36_plugin.prefill.profile import Profile, Starts
from vllm_qwen36_plugin.prefill.shape import Shape
from vllm_qwen36_plugin.upstream.gptq import stock_gptq

from .result import Tuned
from .shapes import Linears

# Each figure is the median of so many medians; between two of them lies the rest of the grid.
ROUNDS = 3
# Seconds of measuring after which no further round is begun, all kinds of linears together.
BUDGET = 75.0


def tune(
    linears: Sequence[Linears],
    *,
    dtype: str,
    scratch_mib: int,
    fp8: bool,
    rows: Sequence[int],
    device: torch.device,
    on_progress: Callable[[int, int], None],
) -> Tuned:
    """Measure every kind of linear with random weights, by vLLM's kernel and each path, at each number of rows.

    Args:
        linears: those of a model.
        dtype: of activations and scales, ``"bfloat16"`` or ``"float16"``.
        scratch_mib: MiB that a weight is written to, part by part.
        fp8: measure 8-bit activations too.
        rows: numbers of rows, ascending.
        device: a CUDA GPU. `RowDispatchKernel` must have been offered to vLLM.
        on_progress: called with how many of how many figures are done.

    A kind that vLLM serves by a kernel of unknown layout is left out, with a note.

    Raises:
        CompatError: something of vLLM is not what this plugin expects.
    """
    begin = time.perf_counter()
    each = len(rows) * ROUNDS
    found: dict[Shape, Linears] = {}
    torch.manual_seed(0)
    options = {"prefill": "fp8" if fp8 else "exact", "prefill_scratch_mib": scratch_mib}
    with _warnings() as notes, _loading(options):
        timing = _Timing.like(prepare.Preparation.now(), tuple(rows), BUDGET / len(linears))
        prepare._current[:] = [timing]
        for number, kind in enumerate(linears):
            timing.on_figure = lambda count, number=number: on_progress(  # type: ignore[misc]
                number * each + count, len(linears) * each
            )
            timing.on_figure(0)
            layer, method = _layer(kind, getattr(torch, dtype), device)
            kernel = method.kernel
            if isinstance(kernel, RowDispatchKernel):
                method.process_weights_after_loading(layer)
                found[kernel.shape] = kind
            else:
                why = RowDispatchKernel.can_implement(kernel.config)[1]
                notes.append(f"{kind.name} is left to {type(kernel).__name__}: {why}")
            timing.on_figure(each)
    where = measure.card(device, scratch_mib)
    took = time.perf_counter() - begin
    source = f"measured: {where.gpu}, {time.strftime('%Y-%m-%d')}, by qwen36 tune in {took:.0f} s"
    starts = {shape: timing.seen[shape].starts for shape in timing.times}
    return Tuned(Profile(source, starts, where, timing.times), found, tuple(notes))


@dataclass(slots=True)
class _Timing(prepare.Preparation):
    """What a model's start does for a shape, but its times are taken here, and no profile is looked for."""

    rows: tuple[int, ...] = ()
    seconds: float = 0.0
    on_figure: Callable[[int], None] = lambda _: None
    times: dict[Shape, measure.Times] = field(default_factory=dict)

    @classmethod
    def like(cls, found: prepare.Preparation, rows: tuple[int, ...], seconds: float) -> _Timing:
        """With another's settings; ``seconds`` a shape, after which no further round is begun."""
        same = {part.name: getattr(found, part.name) for part in fields(prepare.Preparation)}
        return cls(**same, rows=rows, seconds=seconds)

    def _starts(
        self, linear: dispatch.Linear, tensors: Sequence[torch.Tensor], fp8: torch.Tensor | None
    ) -> Starts:
        rounds: list[measure.Times] = []
        figures = 0

        def tick() -> None:
            nonlocal figures
            figures += 1
            self.on_figure(figures)

        begin = time.perf_counter()
        paths = measure.measured_paths(linear)
        while len(rounds) < ROUNDS:
            rounds.append(measure.times_of(linear, tensors, fp8, self.rows, paths, tick))
            spent = time.perf_counter() - begin
            if spent * (len(rounds) + 1) / len(rounds) > self.seconds:
                break
        medians = {
            path: {rows: median(times[path][rows] for times in rounds) for rows in self.rows}
            for path in rounds[0]
        }
        self.times[linear.shape], starts = measure.settled(medians)
        return starts


def _layer(kind: Linears, dtype: torch.dtype, device: torch.device) -> tuple[torch.nn.Module, Any]:
    """A layer of vLLM's GPTQ method with random weights, as it is before they are processed, and the method."""
    config, method_class = stock_gptq()
    method = method_class(
        config.from_config(
            {
                "quant_method": "gptq",
                "bits": kind.bits,
                "group_size": kind.group_size,
                "sym": True,
                "desc_act": False,
            }
        )
    )
    layer = torch.nn.Module()
    with torch.device(device):
        method.create_weights(
            layer, kind.k, [kind.n], kind.k, kind.n, dtype, weight_loader=lambda *_, **__: None
        )
    for parameter in layer.parameters():
        if parameter.dtype == torch.int32:
            parameter.data.random_(-(2**31), 2**31)
        else:
            parameter.data.uniform_(1e-3, 1e-2)
    return layer, method


@contextmanager
def _loading(options: Mapping[str, Any]) -> Iterator[None]:
    """vLLM's state while it loads a model of the family on one GPU, with these options of the plugin."""
    from vllm.config import VllmConfig, set_current_vllm_config
    from vllm.distributed import (
        cleanup_dist_env_and_memory,
        init_distributed_environment,
        initialize_model_parallel,
    )
    from vllm.platforms import current_platform

    config = VllmConfig(additional_config={SECTION: dict(options)})
    with TemporaryDirectory() as folder, set_current_vllm_config(config):
        # vLLM's parameters ask for their rank.
        init_distributed_environment(1, 0, f"file://{folder}/store", 0, current_platform.dist_backend)
        try:
            initialize_model_parallel(1, 1)
            # Not before: which groups are made depends on the model, where there is one.
            config.model_config = SimpleNamespace(hf_config=SimpleNamespace(architectures=[TARGETS[0]]))
            yield
        finally:
            prepare._current.clear()
            dispatch.clear()
            scratch.release()
            cleanup_dist_env_and_memory()


@contextmanager
def _warnings() -> Iterator[list[str]]:
    """The plugin's own warnings, as they come."""
    notes: list[str] = []

    class Handler(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            notes.append(record.getMessage().removeprefix("vllm-qwen36-plugin: "))

    handler = Handler(logging.WARNING)
    logger.addHandler(handler)
    try:
        yield notes
    finally:
        logger.removeHandler(handler)
