"""Run gptqmodel as planned."""

from __future__ import annotations

import gc
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import gptq_hybrid
from gptq_hybrid.calibration import Calibration, load_calibration
from gptq_hybrid.checkpoint import DraftVocab
from gptq_hybrid.common.disk import room_text, writing_trouble
from gptq_hybrid.common.errors import HybridError
from gptq_hybrid.draft_vocab import draft_vocab_from_rows
from gptq_hybrid.losses import ModuleRecord, read_log, write_log
from gptq_hybrid.upstream import checkpoint_config, told_before_abort
from gptq_hybrid.writer import QuantizationFailedError, Verdict, judge

from ._tuning import tune_into_target
from .plan import RunPlan, plan_run, refuse_existing
from .request import QuantizeRequest
from .state import RunState, calibration_items, open_state, request_items, untuned_folder


@dataclass(frozen=True, slots=True)
class QuantizeResult:
    """A finished run.

    Attributes:
        target: the folder that was written.
        records: what quantizing came to, by full module name.
        verdict: the same, held against the limits of the request.
        calibration: manifest of what was drawn.
        source_bytes: of the source's safetensors files.
        target_bytes: of the target's.
        seconds: from the loading of the model on, without those of an earlier, killed run.
        draft_vocab: what was written as ``draft_vocab.json``. None without an MTP head, and where the calibration
            has no reply to count.
        continued: layers that an earlier, killed run had done.
        tuning: what tuning came to (``tuning.json``); None for a recipe without ``[tune]``.
    """

    target: Path
    records: Mapping[str, ModuleRecord]
    verdict: Verdict
    calibration: Mapping[str, Any]
    source_bytes: int
    target_bytes: int
    seconds: float
    draft_vocab: DraftVocab | None = None
    continued: int = 0
    tuning: Mapping[str, Any] | None = None


def quantize(
    plan: RunPlan | QuantizeRequest,
    *,
    on_calibration: Callable[[int, int], None] | None = None,
    on_manifest: Callable[[Mapping[str, Any]], None] | None = None,
    on_slower: Callable[[str], None] | None = None,
    on_layer: Callable[[int, int], None] | None = None,
    on_rounded: Callable[[int, int], None] | None = None,
    on_original: Callable[[int, int], None] | None = None,
    on_step: Callable[[int, int], None] | None = None,
    on_stop: Callable[[], None] | None = None,
    on_abort: Callable[[HybridError], None] | None = None,
) -> QuantizeResult:
    """Quantize the source of a plan into its target: ``quantize(plan_run(request))``.

    Killed at any time, a run of the same request goes on after the last state in ``DST.partial``
    (:mod:`gptq_hybrid.quantize.state`) and writes the same files. That folder is there once the calibration is
    drawn, and goes when the target has arrived.

    Args:
        plan: from :func:`plan_run`; a request is planned first.
        on_calibration: called with (done, total) as calibration rows, or tokens if packed, are drawn.
        on_manifest: called with the manifest of what was drawn.
        on_slower: called with the reason if gptqmodel runs at its own speed, as its code is not the one that
            ``gptq_hybrid.upstream.speedups`` was written for.
        on_layer: called with (done, total) as layers finish.
        on_abort: called with what to tell the user before gptqmodel ends the process, because a task of its
            threads failed.
        on_rounded: called with (done, total) as layers are rounded again.
        on_original: called with (done, total) as the original's layers run over the texts to tune on.
        on_step: called with (done, total) as steps of tuning finish.
        on_stop: called at the first Ctrl-C or SIGTERM while layers are quantized or tuned; the run goes on to the
            end of its layer or step.

    Raises:
        HybridError: what :func:`plan_run` refuses, calibration data, or a state that does not fit; no target was
            written.
        RunInterruptedError: Ctrl-C; the state is kept.
        HybridError: the disk is full, or a folder cannot be written; the state is kept.
        QuantizationFailedError: too many modules failed. No target was written, but ``DST.failed.csv`` with
            what each module came to; no state is left.
    """
    if isinstance(plan, QuantizeRequest):
        plan = plan_run(plan)
    request = plan.request
    refuse_existing(request.target)
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(request.source)
    calibration = load_calibration(
        request.calibration,
        tokenizer,
        samples=request.samples,
        max_length=request.max_length,
        seed=request.seed,
        pack=request.pack,
        exclude=request.exclude,
        further=request.recipe.tune.documents if request.recipe.tune else 0,
        on_progress=on_calibration,
    )
    if on_manifest is not None:
        on_manifest(calibration.manifest)
    draft_vocab = None
    if request.keep_mtp:
        draft_vocab = draft_vocab_from_rows(
            request.source, tokenizer, calibration.rows, [calibration.manifest]
        )
    plan.refuse_tokens(sum(len(row["input_ids"]) for row in calibration.rows))

    def abort(error: BaseException) -> None:
        if on_abort is not None:
            on_abort(_explained(error, request))

    with ExitStack() as stack:
        state: RunState | None = None
        stack.enter_context(_disk_errors_explained(request))
        stack.enter_context(told_before_abort(abort))
        if plan.state.size is not None:
            items = request_items(request, hidden_on_cpu=plan.memory.hidden_on_cpu)
            items |= calibration_items(calibration.manifest)
            state = stack.enter_context(open_state(request.target, items, restart=request.restart))
        target, tuning = request.target, request.recipe.tune is not None
        if tuning:
            target = untuned_folder(state, request.target, stack)
        try:
            if tuning and target.is_dir():
                result = _read_result(plan, target, calibration, draft_vocab)
            else:
                result = _quantize(
                    plan,
                    state,
                    calibration,
                    draft_vocab,
                    target,
                    on_slower=on_slower,
                    on_layer=on_layer,
                    on_stop=on_stop,
                )
        except QuantizationFailedError:
            if state is not None:
                # The same layers would be judged the same.
                state.remove()
            raise
        if tuning:
            result = _tune(
                result,
                request,
                state,
                calibration,
                on_rounded=on_rounded,
                on_original=on_original,
                on_step=on_step,
                on_stop=on_stop,
            )
        if state is not None:
            state.remove()
    return result


def _tune(
    result: QuantizeResult,
    request: QuantizeRequest,
    state: RunState | None,
    calibration: Calibration,
    **callbacks: Any,
) -> QuantizeResult:
    started = time.perf_counter()
    if state is not None:
        # The packed checkpoint is whole; nothing goes back to a layer any more.
        state.drop_layers()
    _free_gpu()
    report = tune_into_target(
        request,
        result.target,
        [row["input_ids"] for row in calibration.rows],
        calibration.further,
        work=state.tuning if state is not None else None,
        **callbacks,
    )
    return replace(
        result,
        target=request.target,
        target_bytes=_safetensors_bytes(request.target),
        seconds=result.seconds + time.perf_counter() - started,
        tuning=report,
    )


def _free_gpu() -> None:
    """Let go of what gptqmodel held: its model is part of a circle of references."""
    import torch

    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


def _read_result(
    plan: RunPlan, untuned: Path, calibration: Calibration, draft_vocab: DraftVocab | None
) -> QuantizeResult:
    """Return what an earlier, killed run had quantized; only the tuning is left."""
    records = {record.module: record for record in read_log(untuned).modules}
    return QuantizeResult(
        target=untuned,
        records=records,
        verdict=judge(records.values(), plan.request.limits),
        calibration=calibration.manifest,
        source_bytes=_safetensors_bytes(plan.request.source),
        target_bytes=_safetensors_bytes(untuned),
        seconds=0.0,
        draft_vocab=draft_vocab,
        continued=plan.sizes.layers,
    )


@contextmanager
def _disk_errors_explained(request: QuantizeRequest) -> Iterator[None]:
    try:
        yield
    except HybridError:
        raise
    except Exception as error:
        if writing_trouble(error) is None:
            raise
        raise _explained(error, request) from error


def _explained(error: BaseException, request: QuantizeRequest) -> HybridError:
    """What ended a run, as its user reads it: of a disk, with the room there is."""
    again = "Give the same command again: it goes on after the last layer whose state was kept."
    if not request.resume:
        again = "Give the same command again."
    trouble = writing_trouble(error)
    if trouble is None:
        return HybridError(f"gptqmodel ended the run: {type(error).__name__}: {error}", remedy=again)
    room = room_text(request.target, Path(tempfile.gettempdir()))
    return HybridError(
        f"the run ended because a file could not be written: {trouble}; {room}",
        remedy=f"Make room, or make the folder writable. {again}",
    )


def _quantize(
    plan: RunPlan,
    state: RunState | None,
    calibration: Calibration,
    draft_vocab: DraftVocab | None,
    target: Path,
    *,
    on_slower: Callable[[str], None] | None,
    on_layer: Callable[[int, int], None] | None,
    on_stop: Callable[[], None] | None,
) -> QuantizeResult:
    gptq_hybrid.register()
    from gptqmodel import GPTQModel

    request, layers = plan.request, plan.sizes.layers
    started = time.perf_counter()
    overrides = {"calibration_data_device": "cpu"} if plan.memory.hidden_on_cpu else {}
    model = GPTQModel.load(str(request.source), request.recipe.quantize_config(**overrides))
    model.source_checkpoint = plan.checkpoint
    model.keep_mtp = request.keep_mtp
    model.packaging = request.recipe.packaging
    model.limits = request.limits
    model.calibration_manifest = calibration.manifest
    model.draft_vocab = draft_vocab
    model.on_slower = on_slower
    model.on_stop = on_stop
    if on_layer is not None:
        model.layer_callback = _counting(on_layer, layers)
    continued = 0
    options: dict[str, Any] = {}
    if state is not None and plan.state.size is not None:
        continued = state.layers()
        options["checkpoint"] = checkpoint_config(state.store, plan.state.size.interval)
        if on_layer is not None and continued:
            on_layer(continued, layers)
    model.quantize(calibration.rows, batch_size=request.batch_size, **options)
    try:
        model.save(str(target))
    except QuantizationFailedError as error:
        log = request.target.with_name(f"{request.target.name}.failed.csv")
        write_log(log, list(model.module_records.values()))
        raise QuantizationFailedError(
            f"{error.message}. Nothing was written but a log of the modules, {log}",
            remedy=f"See which modules: qwen36 losses {log}. Use more, or more varied, calibration data.",
        ) from error
    return QuantizeResult(
        target=target,
        records=model.module_records,
        verdict=model.verdict,
        calibration=calibration.manifest,
        source_bytes=_safetensors_bytes(request.source),
        target_bytes=_safetensors_bytes(target),
        seconds=time.perf_counter() - started,
        draft_vocab=draft_vocab,
        continued=continued,
    )


def _counting(on_layer: Callable[[int, int], None], total: int) -> Callable[..., None]:
    def layer_complete(layer_idx: int, submodule_finalized: bool) -> None:
        # gptqmodel calls twice a layer; the second time its modules are packed.
        if submodule_finalized:
            on_layer(layer_idx + 1, total)

    return layer_complete


def _safetensors_bytes(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.glob("*.safetensors"))
