"""Build one linear of each kind as vLLM would load it on this GPU, and time its routes."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from statistics import median
from tempfile import TemporaryDirectory
from types import SimpleNamespace
from typing import Any

import torch

from vllm_qwen36_plugin.architectures import TARGETS
from vllm_qwen36_plugin.log import logger
from vllm_qwen36_plugin.options import SECTION
from vllm_qwen36_plugin.prefill import dispatch, measure, prepare
from vllm_qwen36_plugin.prefill.kernel import PrefillLinearKernel
from vllm_qwen36_plugin.prefill.profile import Profile, Starts
from vllm_qwen36_plugin.prefill.shape import Shape
from vllm_qwen36_plugin.upstream.gptq import stock_gptq

from .result import Tuned
from .shapes import Linears

# Each figure is the median of so many medians, and the rest of the shape's figures are measured between two of
# them.
ROUNDS = 3
# Seconds of measuring, all kinds of linears together, after which no further round begins.
BUDGET = 75.0


def tune(
    linears: Sequence[Linears],
    *,
    dtype: str,
    scratch_mib: int,
    fp8: bool,
    a8: bool,
    counts: Sequence[int],
    device: torch.device,
    on_progress: Callable[[int, int], None],
) -> Tuned:
    """Measure every kind of linear with random weights, by vLLM's kernel and each route.

    A kind that vLLM serves by a kernel of unknown layout is left out, with a note.

    Args:
        linears: those of a model.
        dtype: of activations and scales, ``"bfloat16"`` or ``"float16"``.
        scratch_mib: MiB that a weight is written to, part by part.
        fp8: measure the route ``fp8`` too.
        a8: measure the route ``a8`` too.
        counts: numbers of tokens, ascending.
        device: a CUDA GPU. The plugin's kernel must have been offered to vLLM.
        on_progress: called with the number of figures done and the number of all figures.

    Raises:
        CompatError: something in vLLM is not what this plugin expects.
    """
    begin = time.perf_counter()
    figures = len(counts) * ROUNDS
    kinds: dict[Shape, Linears] = {}
    torch.manual_seed(0)
    options = {"prefill": "fp8" if fp8 else "exact", "prefill_scratch_mib": scratch_mib}
    with _warnings() as notes, _loading(options):
        timing = _Timing.fresh(counts=tuple(counts), budget=BUDGET / len(linears), also=("a8",) if a8 else ())
        with prepare.using(timing):
            for number, kind in enumerate(linears):
                timing.on_figure = lambda done, number=number: on_progress(  # type: ignore[misc]
                    number * figures + done, len(linears) * figures
                )
                timing.on_figure(0)
                layer, method = _layer(kind, getattr(torch, dtype), device)
                kernel = method.kernel
                if isinstance(kernel, PrefillLinearKernel):
                    method.process_weights_after_loading(layer)
                    kinds[kernel.shape] = kind
                else:
                    reason = PrefillLinearKernel.can_implement(kernel.config)[1]
                    notes.append(f"{kind.name} is left to {type(kernel).__name__}: {reason}")
                timing.on_figure(figures)
    card = measure.card(device, scratch_mib)
    seconds = time.perf_counter() - begin
    source = f"measured: {card.gpu}, {time.strftime('%Y-%m-%d')}, by qwen36 tune prefill in {seconds:.0f} s"
    starts = {shape: timing.linears[shape].starts for shape in timing.times}
    return Tuned(Profile(source, starts, card, timing.times), kinds, tuple(notes))


@dataclass(slots=True)
class _Timing(prepare.Preparation):
    """Does what a start does for a shape, but takes the times itself and reads no profile.

    Attributes:
        counts: numbers of tokens to measure.
        budget: seconds for a shape, after which no further round begins.
        on_figure: called with the number of the shape's figures that are done.
        times: those measured so far.
    """

    counts: tuple[int, ...] = ()
    budget: float = 0.0
    on_figure: Callable[[int], None] = lambda _: None
    times: dict[Shape, measure.Times] = field(default_factory=dict)

    def starts_for(
        self, linear: dispatch.Linear, tensors: Sequence[torch.Tensor], fp8: torch.Tensor | None
    ) -> Starts:
        """Measure the shape's routes, and find their starts."""
        rounds: list[measure.Times] = []
        figures = 0

        def tick() -> None:
            nonlocal figures
            figures += 1
            self.on_figure(figures)

        begin = time.perf_counter()
        routes = measure.routes_to_measure(linear)
        while len(rounds) < ROUNDS:
            rounds.append(measure.time_routes(linear, tensors, fp8, self.counts, routes, tick))
            spent = time.perf_counter() - begin
            if spent * (len(rounds) + 1) / len(rounds) > self.budget:
                break
        medians = {
            way: {tokens: median(times[way][tokens] for times in rounds) for tokens in measured}
            for way, measured in rounds[0].items()
        }
        self.times[linear.shape], starts = measure.settle(medians)
        return starts


def _layer(kind: Linears, dtype: torch.dtype, device: torch.device) -> tuple[torch.nn.Module, Any]:
    """Build a layer of vLLM's GPTQ method with random weights, not processed yet; return it and the method."""
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
    """Put vLLM into the state in which it loads a model of the family on one GPU, with these plugin options."""
    from vllm.config import VllmConfig, set_current_vllm_config
    from vllm.distributed import (
        cleanup_dist_env_and_memory,
        init_distributed_environment,
        initialize_model_parallel,
    )
    from vllm.platforms import current_platform

    config = VllmConfig(additional_config={SECTION: dict(options)})
    with TemporaryDirectory() as folder, set_current_vllm_config(config):
        # Needed because vLLM's parameters ask for their rank.
        init_distributed_environment(1, 0, f"file://{folder}/store", 0, current_platform.dist_backend)
        try:
            initialize_model_parallel(1, 1)
            # Only now: the groups that vLLM makes depend on the model, if there is one.
            config.model_config = SimpleNamespace(hf_config=SimpleNamespace(architectures=[TARGETS[0]]))
            yield
        finally:
            cleanup_dist_env_and_memory()


@contextmanager
def _warnings() -> Iterator[list[str]]:
    """Collect the plugin's own warnings as they come."""
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
