"""Tune a packed checkpoint: the original's states, the steps, and when to stop."""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch

from gptq_hybrid.checkpoint.fingerprint import checkpoint_fingerprint
from gptq_hybrid.common.machine import environment
from gptq_hybrid.common.paths import keep_paths
from gptq_hybrid.evaluate.inputs import exact_float32
from gptq_hybrid.evaluate.passes import PassSettings, run_pass
from gptq_hybrid.evaluate.states import StateStore, state_key
from gptq_hybrid.recipes import TuneSettings
from gptq_hybrid.streaming import Batch, CheckpointWeights, OutputHead, States, TextStack, make_batches

from ._parameters import Parameters
from ._passes import TunedStack
from ._state import Progress, TuningState
from .texts import Texts, split_texts

# Tokens that run through a layer at once, padding included. With gradients a Gated-DeltaNet layer of the 27B holds
# about three times what it holds without.
_BATCH_TOKENS = {"cuda": 4096, "cpu": 2048}
_WARM_UP = 0.05
_MOMENTS = (0.9, 0.95)

OnStep = Callable[[int, int], None]


@dataclass(frozen=True, slots=True)
class TuneRequest:
    """What to tune, on what.

    Attributes:
        source: folder of the BF16 original.
        checkpoint: folder of the packed checkpoint.
        documents: token ids of texts that were not calibrated on.
        settings: of the recipe; without steps the stopping part is measured, and nothing changes.
        work: folder for states; None keeps none.
        save_every: seconds between two savings of the state.
        before: folder of the checkpoint before its linears were rounded again, to measure it too; None without.
    """

    source: Path
    checkpoint: Path
    documents: Sequence[Sequence[int]]
    settings: TuneSettings
    work: Path | None = None
    save_every: float = 60.0
    before: Path | None = None

    def __post_init__(self) -> None:
        keep_paths(self, "source", "checkpoint", "work", "before")


@dataclass(frozen=True, slots=True)
class Tuned:
    """A finished tuning.

    Attributes:
        tensors: what changes in the file, by full name, in the dtypes it had.
        report: what was done, a JSON object.
    """

    tensors: dict[str, torch.Tensor]
    report: dict[str, Any]

    @property
    def brought_nothing(self) -> bool:
        """Whether the checkpoint before rounding was as good on the stopping part."""
        least = min(check["kld"] for check in self.report["stopping_kld"])
        return bool(self.report.get("stopping_kld_before_rounding", float("inf")) <= least)


def tune(
    request: TuneRequest,
    *,
    on_original: OnStep | None = None,
    on_step: OnStep | None = None,
    stop: Callable[[], bool] = lambda: False,
) -> Tuned | None:
    """Train scales and norms until the steps are done; take those that were best on the stopping part.

    Killed, it goes on after the last state in ``request.work``, and ends with the same tensors.

    Args:
        request: what to tune.
        on_original: called with (layers done, layers) as the original runs over the texts.
        on_step: called with (steps done, steps).
        stop: asked after each step; True saves the state and returns None.

    Raises:
        HybridError: the checkpoint cannot be tuned, there is too little text, or a state does not fit.
    """
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    dtype = torch.bfloat16 if device.type == "cuda" else torch.float32
    texts = split_texts(request.documents, request.settings.tokens)
    source, weights = CheckpointWeights(request.source), CheckpointWeights(request.checkpoint)
    parameters = Parameters(weights)
    size = _BATCH_TOKENS[device.type]
    # Texts of steps that are not taken need no original.
    rounds = [make_batches(step, size) for step in texts.steps[: request.settings.steps]]
    stopping = make_batches(texts.stopping, size)
    with exact_float32(device):
        states = _original(source, [*(b for step in rounds for b in step), *stopping], request, on_original)
        head = OutputHead(TextStack(source, device, dtype))
        tuned = TunedStack(weights, parameters, device, dtype, head)
        loop = _Loop(tuned, parameters, rounds, stopping, states, request.settings)
        store = None
        if request.work is not None:
            store = TuningState(
                request.work, _key(source, weights, texts, request, device), every=request.save_every
            )
        progress = loop.run(store, on_step, stop)
    if progress is None:
        return None
    parameters.load(progress.best)
    report = _report(progress, texts, request, device)
    with exact_float32(device):
        if request.before is not None:
            other = CheckpointWeights(request.before)
            stack = TunedStack(other, Parameters(other), device, dtype, head)
            was = stack.divergence(loop.stopping, loop.stopping_states)
            report["stopping_kld_before_rounding"] = max(0.0, round(was, 8))
        if loop.rounds:
            after = tuned.divergence(*loop.rounds[0])
            # Of texts learned from, so no evidence of quality: beside the stopping part it tells what was learned
            # by heart.
            report["in_sample_kld"] = {"before": round(progress.losses[0], 8), "after": round(after, 8)}
    names = [name for name in parameters.values if parameters.moved(name)]
    return Tuned({name: parameters.stored(name) for name in names}, report)


class _Loop:
    def __init__(
        self,
        tuned: TunedStack,
        parameters: Parameters,
        rounds: list[list[Batch]],
        stopping: list[Batch],
        states: States,
        settings: TuneSettings,
    ) -> None:
        self.tuned = tuned
        self.parameters = parameters
        self.settings = settings
        self.stopping, self.stopping_states = stopping, states[len(states) - len(stopping) :]
        self.rounds: list[tuple[list[Batch], States]] = []
        at = 0
        for batches in rounds:
            self.rounds.append((batches, states[at : at + len(batches)]))
            at += len(batches)
        self.rates = [settings.scale_rate, settings.norm_rate]
        groups = [{"params": parameters.scales()}, {"params": parameters.norms()}]
        self.optimizer = torch.optim.Adam(groups, lr=0.0, betas=_MOMENTS)

    def run(
        self, store: TuningState | None, on_step: OnStep | None, stop: Callable[[], bool]
    ) -> Progress | None:
        progress = store.load(self.parameters, self.optimizer) if store is not None else Progress()
        steps = self.settings.steps
        if not progress.checks:
            self._check(progress)
        while progress.step < steps:
            if on_step is not None:
                on_step(progress.step, steps)
            batches, states = self.rounds[progress.step % len(self.rounds)]
            self._rate(progress.step)
            self.optimizer.zero_grad(set_to_none=True)
            progress.losses.append(self.tuned.gradients(batches, states))
            self.optimizer.step()
            progress.step += 1
            if progress.step % self.settings.checks == 0 or progress.step == steps:
                self._check(progress)
            stopped = progress.step < steps and stop()
            if store is not None:
                (store.save if stopped else store.save_if_due)(progress, self.parameters, self.optimizer)
            if stopped:
                return None
        if on_step is not None:
            on_step(steps, steps)
        return progress

    def _rate(self, step: int) -> None:
        """Set the learning rates: a short warm-up, then half a cosine down to nothing."""
        steps = self.settings.steps
        rise = min(1.0, (step + 1) / max(1.0, steps * _WARM_UP))
        fall = 0.5 * (1 + math.cos(math.pi * step / steps))
        for group, rate in zip(self.optimizer.param_groups, self.rates, strict=True):
            group["lr"] = rate * rise * fall

    def _check(self, progress: Progress) -> None:
        divergence = self.tuned.divergence(self.stopping, self.stopping_states)
        progress.checks.append((progress.step, divergence))
        if progress.best_step == progress.step:
            progress.best = {name: v.detach().clone() for name, v in self.parameters.values.items()}


def _original(
    source: CheckpointWeights, batches: Sequence[Batch], request: TuneRequest, on_layer: OnStep | None
) -> States:
    """Run the original over all texts; its layers' states are kept, so this too goes on after a kill."""
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    dtype = torch.bfloat16 if device.type == "cuda" else torch.float32
    store = None
    if request.work is not None:
        settings = {
            "batches": hashlib.sha256(b"".join(b.tokens.numpy().tobytes() for b in batches)).hexdigest(),
            "dtype": str(dtype),
            "environment": environment(str(device)),
        }
        store = StateStore(
            request.work, state_key(source.checkpoint, settings), every=max(1.0, request.save_every)
        )
    settings_of_pass = PassSettings(device, dtype, drafts=0)
    return run_pass(source, batches, settings_of_pass, store=store, has_mtp=False, on_layer=on_layer).hidden


def _key(
    source: CheckpointWeights,
    weights: CheckpointWeights,
    texts: Texts,
    request: TuneRequest,
    device: torch.device,
) -> str:
    content = {
        "source": checkpoint_fingerprint(source.checkpoint),
        "checkpoint": checkpoint_fingerprint(weights.checkpoint),
        "texts": texts.sha256,
        "settings": asdict(request.settings),
        "environment": environment(str(device)),
    }
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


def _report(progress: Progress, texts: Texts, request: TuneRequest, device: torch.device) -> dict[str, Any]:
    return {
        "settings": asdict(request.settings),
        "steps_of_a_round": len(texts.steps),
        "tuning_documents": sum(map(len, texts.steps[: request.settings.steps])),
        "tuning_tokens": sum(len(ids) for step in texts.steps[: request.settings.steps] for ids in step),
        "stopping_documents": len(texts.stopping),
        "stopping_tokens": sum(map(len, texts.stopping)),
        "texts_sha256": texts.sha256,
        "step_taken": progress.best_step,
        "stopping_kld": [{"step": step, "kld": max(0.0, round(value, 8))} for step, value in progress.checks],
        "dtype": "bfloat16" if device.type == "cuda" else "float32",
    }
