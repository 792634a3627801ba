"""The scan: every module by itself, in every precision."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from gptq_hybrid.calibration import EncodedDocument
from gptq_hybrid.checkpoint.fingerprint import checkpoint_fingerprint
from gptq_hybrid.common.errors import HybridError
from gptq_hybrid.common.extras import need
from gptq_hybrid.common.machine import environment
from gptq_hybrid.common.memory import free_memory
from gptq_hybrid.common.paths import keep_paths
from gptq_hybrid.evaluate.inputs import (
    RunOptions,
    batch_documents,
    choose_device,
    describe_run,
    exact_float32,
    parse_dtype,
    read_documents,
    refuse_other_model,
    refuse_quantized_reference,
)
from gptq_hybrid.evaluate.states import state_key
from gptq_hybrid.packing import SEARCH
from gptq_hybrid.streaming import Batch, CheckpointWeights

from ._passes import HeadVariant, Passes
from ._precisions import Precision, Rounded, Stored
from ._store import ResultStore
from ._units import Unit, list_units
from ._walk import Variant, variant_key

BITS = (4, 8)
EVERYTHING = "everything"
REFERENCE_DRAFTS = "reference.drafts"

OnProgress = Callable[[int, int], None]


@dataclass(frozen=True, slots=True)
class ScanRequest(RunOptions):
    """The request of ``qwen36 sensitivity``; the fields of :class:`RunOptions` are keywords.

    Attributes:
        reference: the BF16 original.
        work: folder for finished variants.
        data: as for ``qwen36 eval``.
        quantized: a GPTQ checkpoint of the original, whose weights are one of the precisions; None for rounding
            alone.
        bits: for rounding to nearest; each is a precision.
        group_size: inputs that share a scale, in rounding.
        memory: bytes of main memory for hidden states; None for half of what is free.
    """

    reference: Path
    work: Path
    data: tuple[str, ...]
    quantized: Path | None = None
    bits: tuple[int, ...] = BITS
    group_size: int = 128
    memory: int | None = None
    max_length: int = field(default=512, kw_only=True)

    def __post_init__(self) -> None:
        keep_paths(self, "reference", "work", "quantized")


@dataclass(frozen=True)
class Scan:
    """Sums by document of every variant, and how they were made.

    Attributes:
        sums: by the variant's key, arrays ``[documents]``: ``kld`` (nats) and ``top1`` over the predicted tokens,
            or ``accepted`` drafts over ``positions``.
    """

    units: tuple[Unit, ...]
    precisions: tuple[Precision, ...]
    documents: tuple[EncodedDocument, ...]
    sums: dict[str, dict[str, NDArray[np.float64]]]
    settings: dict[str, Any]
    environment: dict[str, str]
    fingerprints: dict[str, str]


def scan(request: ScanRequest, *, on_progress: OnProgress | None = None) -> Scan:
    """Replace each unit by itself in each precision, with all else as in the reference.

    ``on_progress(done, total)`` counts layers that a variant has passed.

    Raises:
        HybridError: a checkpoint cannot be run, documents cannot be read, groups do not divide a module, or there
            is too little memory.
    """
    dtype = parse_dtype(request.dtype)
    need("scipy")  # now, and not when the intervals are computed an hour later
    device = choose_device(request.device)
    weights = CheckpointWeights(request.reference)
    refuse_quantized_reference(weights)
    units = list_units(weights.layout, mtp=weights.has_mtp and request.drafts > 0)
    precisions = _list_precisions(request, weights, units)
    quantized = [precision.weights for precision in precisions if isinstance(precision, Stored)]
    documents = read_documents(request.data, weights, quantized, request)
    batches = batch_documents(documents, request, device)
    store = ResultStore(request.work, _store_settings(request, weights, documents, batches, device))
    passes = Passes(
        weights,
        device,
        dtype,
        batches,
        len(documents),
        request.drafts,
        memory=free_memory() // 2 if request.memory is None else request.memory,
    )
    with exact_float32(device):
        sums = _run(passes, store, units, precisions, on_progress)
    fingerprints = {"reference": checkpoint_fingerprint(weights.checkpoint)}
    if quantized:
        fingerprints["quantized"] = checkpoint_fingerprint(quantized[0].checkpoint)
    settings = {
        **describe_run(request.data, documents, request, device),
        "bits": list(request.bits),
        "group_size": request.group_size,
    }
    return Scan(
        tuple(units),
        tuple(precisions),
        tuple(documents),
        sums,
        settings,
        environment(str(device)),
        fingerprints,
    )


def _list_precisions(
    request: ScanRequest, weights: CheckpointWeights, units: Sequence[Unit]
) -> list[Precision]:
    precisions: list[Precision] = []
    if request.quantized is not None:
        quantized = CheckpointWeights(request.quantized)
        refuse_other_model(weights, quantized, str(request.quantized))
        stored = Stored(quantized, weights.layout.layers_prefix)
        if not any(stored.covers(unit) for unit in units):
            raise HybridError(
                f"{request.quantized} holds no quantized module",
                remedy="Give a GPTQ checkpoint as QUANT, or none, to round the original's modules.",
            )
        precisions.append(stored)
    for bits in dict.fromkeys(request.bits):
        if not 2 <= bits <= 8:
            raise HybridError(
                f"--bits {bits}: modules are rounded to 2 to 8 bits", remedy="Such as --bits 4."
            )
        rounded = Rounded(bits, request.group_size)
        rounded.refuse_impossible(units)
        precisions.append(rounded)
    if not precisions:
        raise HybridError("there is nothing to compare with", remedy="Give QUANT, --bits, or both.")
    return precisions


def _run(
    passes: Passes,
    store: ResultStore,
    units: Sequence[Unit],
    precisions: Sequence[Precision],
    on_progress: OnProgress | None,
) -> dict[str, dict[str, NDArray[np.float64]]]:
    """Load the variants that are stored, compute and store the others; return all."""
    layers: list[Variant] = []
    heads: list[HeadVariant] = []
    drafts: list[HeadVariant] = []
    for precision in precisions:
        covered = [unit for unit in units if precision.covers(unit)]
        in_layers = [unit for unit in covered if unit.place == "layer"]
        layers += [Variant(unit.name, precision, (unit,)) for unit in in_layers]
        if in_layers:
            layers.append(Variant(EVERYTHING, precision, tuple(in_layers)))
        for unit in covered:
            if unit.place != "layer":
                variants = heads if unit.place == "head" else drafts
                variants.append((variant_key(precision, unit.name), precision, unit))
    keys = [*(variant.key for variant in layers), *(key for key, _, _ in (*heads, *drafts))]
    if any(unit.place == "mtp" for unit in units):
        keys.append(REFERENCE_DRAFTS)
    sums = {key: arrays for key in keys if (arrays := store.load(key)) is not None}
    if len(sums) < len(keys):

        def save(key: str, arrays: Mapping[str, NDArray[np.float64]]) -> None:
            sums[key] = dict(arrays)
            store.save(key, arrays)

        passes.run(
            [variant for variant in layers if variant.key not in sums],
            [entry for entry in heads if entry[0] not in sums],
            [entry for entry in drafts if entry[0] not in sums],
            reference_drafts=REFERENCE_DRAFTS if REFERENCE_DRAFTS in {*keys} - {*sums} else None,
            save=save,
            on_progress=on_progress,
        )
    return {key: sums[key] for key in keys}


def _store_settings(
    request: ScanRequest,
    weights: CheckpointWeights,
    documents: Sequence[EncodedDocument],
    batches: Sequence[Batch],
    device: torch.device,
) -> dict[str, Any]:
    """Return every setting that affects a variant's numbers."""
    return {
        "reference": state_key(weights.checkpoint, {}),
        "documents": [document.key for document in documents],
        "batches": [list(batch.numbers) for batch in batches],
        "dtype": request.dtype,
        "drafts": request.drafts,
        "rounding": SEARCH,
        "environment": environment(str(device)),
    }
