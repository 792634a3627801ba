"""Running gptqmodel with a recipe."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import gptq_hybrid
from gptq_hybrid.calibration import DEFAULT_CALIBRATION, DEFAULT_PACK, load_calibration
from gptq_hybrid.checkpoint import Checkpoint, DraftVocab, HybridError, layout_for
from gptq_hybrid.compat import ModuleRecord
from gptq_hybrid.draft_vocab import draft_vocab_of
from gptq_hybrid.recipes import DEFAULT_RECIPE, Recipe, load_recipe
from gptq_hybrid.writer import Limits, Verdict, judge

from ._native import refuse_run
from ._preflight import preflight


@dataclass(frozen=True, slots=True)
class QuantizeRequest:
    """What ``qwen36 quantize`` was asked for. ``max_length`` is in tokens."""

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
    or where the calibration has no reply to count.
    """

    target: Path
    records: Mapping[str, ModuleRecord]
    verdict: Verdict
    calibration: Mapping[str, Any]
    source_bytes: int
    target_bytes: int
    seconds: float
    draft_vocab: DraftVocab | None = None


class QuantizationFailedError(HybridError):
    """Too many modules failed. Nothing was written."""


def quantize(
    request: QuantizeRequest,
    *,
    on_layer: Callable[[int, int], None] | None = None,
    on_calibration: Callable[[int, int], None] | None = None,
    on_manifest: Callable[[Mapping[str, Any]], None] | None = None,
) -> QuantizeResult:
    """Quantize ``request.source`` into ``request.target``.

    ``on_calibration(done, total)`` is called as calibration rows (tokens, if packed) are drawn,
    ``on_manifest`` with what was drawn, ``on_layer(done, total)`` as layers finish.

    Raises:
        HybridError: preflight or calibration data; nothing was written.
        QuantizationFailedError: the verdict; nothing was written.
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
        draft_vocab = draft_vocab_of(request.source, tokenizer, calibration.rows, [calibration.manifest])
    tokens = sum(len(row["input_ids"]) for row in calibration.rows)
    refuse_run(
        Checkpoint.open(request.source),
        request.recipe.settings,
        tokens,
        bound=False,
        hidden_on_cpu=found.calibration_on_cpu,
    )
    layers = len(_layer_numbers(request.source))
    gptq_hybrid.register()
    from gptqmodel import GPTQModel

    started = time.perf_counter()
    overrides: dict[str, Any] = {"calibration_data_device": "cpu"} if found.calibration_on_cpu else {}
    model = GPTQModel.load(str(request.source), request.recipe.quantize_config(**overrides))
    model.keep_mtp = request.keep_mtp
    model.packaging = request.recipe.packaging
    model.calibration_manifest = calibration.manifest
    model.draft_vocab = draft_vocab
    if on_layer is not None:
        model.layer_callback = _counting(on_layer, layers)
    model.quantize(calibration.rows, batch_size=request.batch_size)
    verdict = judge(model.module_records.values(), request.limits)
    if not verdict.ok:
        raise QuantizationFailedError(
            "The quantization failed and nothing was written: " + "; ".join(verdict.failures),
            remedy="Use more, or more varied, calibration data.",
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
    )


def _counting(on_layer: Callable[[int, int], None], total: int) -> Callable[..., None]:
    def layer_complete(layer_idx: int, submodule_finalized: bool) -> None:
        # gptqmodel calls twice a layer; the second time its modules are packed.
        if submodule_finalized:
            on_layer(layer_idx + 1, total)

    return layer_complete


def _layer_numbers(source: Path) -> set[str]:
    layout = layout_for(Checkpoint.open(source).config)
    return {linear.name.removeprefix(layout.layers_prefix).split(".")[1] for linear in layout.quantized}


def _safetensors_bytes(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.glob("*.safetensors"))
