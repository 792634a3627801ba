"""Running gptqmodel with a recipe."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import gptq_hybrid
from gptq_hybrid.calibration import DEFAULT_CALIBRATION, DEFAULT_PACK, Calibration, load_calibration
from gptq_hybrid.checkpoint import Checkpoint, DraftVocab, layout_for
from gptq_hybrid.common.errors import HybridError
from gptq_hybrid.draft_vocab import draft_vocab_from_rows
from gptq_hybrid.quantize.state import (
    ResumePlan,
    RunState,
    before_calibration,
    of_calibration,
    open_state,
)
from gptq_hybrid.recipes import DEFAULT_RECIPE, Recipe, load_recipe
from gptq_hybrid.recipes.sizes import layer_count
from gptq_hybrid.upstream import ModuleRecord, checkpoint_config
from gptq_hybrid.writer import Limits, Verdict, judge, write_records

from ._native import refuse_run
from ._preflight import preflight


@dataclass(frozen=True, slots=True)
class QuantizeRequest:
    """What ``qwen36 quantize`` was asked for. ``max_length`` is in tokens.

    ``resume``: keep the state of the run beside the target, and continue from one that is there; ``restart``:
    throw that one away first. ``state_every``: layers between two states; by their size if None.
    """

    source: Path
    target: Path
    recipe: Recipe = field(default_factory=lambda: load_recipe(DEFAULT_RECIPE))
    calibration: str = DEFAULT_CALIBRATION
    samples: int = 512
    max_length: int = 2048
    batch_size: int = 1
    seed: int = 0
    pack: bool = DEFAULT_PACK
    exclude: tuple[str, ...] = ()
    keep_mtp: bool = True
    resume: bool = True
    restart: bool = False
    state_every: int | None = None
    limits: Limits = field(default_factory=Limits)

    @property
    def bits(self) -> int:
        return int(self.recipe.settings["bits"])

    @property
    def group_size(self) -> int:
        return int(self.recipe.settings["group_size"])


@dataclass(frozen=True, slots=True)
class QuantizeResult:
    """A finished run.

    ``calibration`` is the manifest; ``seconds`` counts from the loading of the model; sizes are of
    safetensors files. ``draft_vocab`` is what was written as ``draft_vocab.json``: nothing without an MTP head,
    or where the calibration has no reply to count. ``continued``: layers that an earlier, killed run had done;
    ``seconds`` are without them.
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


class QuantizationFailedError(HybridError):
    """Too many modules failed. Nothing was written."""


def quantize(
    request: QuantizeRequest,
    *,
    on_layer: Callable[[int, int], None] | None = None,
    on_calibration: Callable[[int, int], None] | None = None,
    on_manifest: Callable[[Mapping[str, Any]], None] | None = None,
    on_stop: Callable[[], None] | None = None,
) -> QuantizeResult:
    """Quantize ``request.source`` into ``request.target``.

    ``on_calibration(done, total)`` is called as calibration rows (tokens, if packed) are drawn,
    ``on_manifest`` with what was drawn, ``on_layer(done, total)`` as layers finish; ``on_stop`` at the first Ctrl-C
    (or SIGTERM) while layers are quantized, when the run goes on to the end of its layer.

    Killed at any time, a run of the same request goes on after the last state in ``DST.partial``
    (:mod:`gptq_hybrid.quantize.state`) and writes the same files. That folder is there from the calibration on, and
    goes with the target's arrival.

    Raises:
        HybridError: preflight, calibration data, or a state that does not fit; no target was written.
        RunInterruptedError: Ctrl-C; the state is kept.
        QuantizationFailedError: the verdict; no target was written, but ``DST.failed.csv`` with what each module
            came to, and no state is left.
    """
    found = preflight(request)
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
        on_progress=on_calibration,
    )
    if on_manifest is not None:
        on_manifest(calibration.manifest)
    draft_vocab = None
    if request.keep_mtp:
        draft_vocab = draft_vocab_from_rows(
            request.source, tokenizer, calibration.rows, [calibration.manifest]
        )
    tokens = sum(len(row["input_ids"]) for row in calibration.rows)
    refuse_run(
        Checkpoint.open(request.source),
        request.recipe.settings,
        tokens,
        bound=False,
        hidden_on_cpu=found.calibration_on_cpu,
    )
    plan = found.resume
    with ExitStack() as stack:
        state: RunState | None = None
        if plan.size is not None:
            items = before_calibration(request, hidden_on_cpu=found.calibration_on_cpu)
            items |= of_calibration(calibration.manifest)
            state = stack.enter_context(open_state(request.target, items, restart=request.restart))
        result = _quantize(
            request, plan, state, found.calibration_on_cpu, calibration, draft_vocab, on_layer, on_stop
        )
        if state is not None:
            state.remove()
    return result


def _quantize(
    request: QuantizeRequest,
    plan: ResumePlan,
    state: RunState | None,
    hidden_on_cpu: bool,
    calibration: Calibration,
    draft_vocab: DraftVocab | None,
    on_layer: Callable[[int, int], None] | None,
    on_stop: Callable[[], None] | None,
) -> QuantizeResult:
    layers = layer_count(layout_for(Checkpoint.open(request.source).config))
    gptq_hybrid.register()
    from gptqmodel import GPTQModel

    started = time.perf_counter()
    overrides: dict[str, Any] = {"calibration_data_device": "cpu"} if hidden_on_cpu else {}
    model = GPTQModel.load(str(request.source), request.recipe.quantize_config(**overrides))
    model.keep_mtp = request.keep_mtp
    model.packaging = request.recipe.packaging
    model.calibration_manifest = calibration.manifest
    model.draft_vocab = draft_vocab
    model.limits = request.limits
    model.on_stop = on_stop
    if on_layer is not None:
        model.layer_callback = _counting(on_layer, layers)
    continued = 0
    options: dict[str, Any] = {}
    if state is not None and plan.size is not None:
        continued = state.layers()
        options["checkpoint"] = checkpoint_config(state.store, plan.size.interval)
        if on_layer is not None and continued:
            on_layer(continued, layers)
    model.quantize(calibration.rows, batch_size=request.batch_size, **options)
    verdict = judge(model.module_records.values(), request.limits)
    if not verdict.ok:
        if state is not None:
            # The same layers would be judged the same.
            state.remove()
        log = request.target.with_name(f"{request.target.name}.failed.csv")
        write_records(log, model.module_records)
        raise QuantizationFailedError(
            f"The quantization failed, and nothing was written but its log, {log}: "
            + "; ".join(verdict.failures),
            remedy=f"See which modules: qwen36 losses {log}. Use more, or more varied, calibration data.",
        )
    model.save(str(request.target))
    return QuantizeResult(
        target=request.target,
        records=model.module_records,
        verdict=verdict,
        calibration=calibration.manifest,
        source_bytes=_safetensors_bytes(request.source),
        target_bytes=_safetensors_bytes(request.target),
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
