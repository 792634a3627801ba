"""The scan: every module by itself, in every form."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from gptq_hybrid.calibration import EncodedDocument
from gptq_hybrid.common.errors import HybridError
from gptq_hybrid.common.extras import need
from gptq_hybrid.common.machine import environment
from gptq_hybrid.common.memory import free_memory
from gptq_hybrid.evaluate import DTYPES
from gptq_hybrid.evaluate.inputs import (
    device_of,
    documents_of,
    exact_float32,
    refuse_other_model,
    refuse_quantized_reference,
)
from gptq_hybrid.evaluate.states import fingerprint, state_key
from gptq_hybrid.streaming import Batch, CheckpointWeights, make_batches

from ._forms import Form, Rounded, Stored
from ._passes import Passes
from ._store import ResultStore
from ._units import Unit, units_of
from ._walk import Variant

BITS = (4, 8)
_DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}
_BATCH_TOKENS = {"cuda": 8192, "cpu": 4096}
EVERYTHING = "everything"
REFERENCE_DRAFTS = "reference.drafts"

OnProgress = Callable[[int, int], None]


@dataclass(frozen=True, slots=True)
class ScanRequest:
    """What ``qwen36 sensitivity`` was asked for.

    Attributes:
        reference: the BF16 original.
        work: folder for finished variants.
        quantized: a GPTQ checkpoint of it, whose weights are one of the forms; None for rounding alone.
        data: as of ``qwen36 eval``.
        bits: of rounding to nearest, each a form.
        drafts: MTP drafts that acceptance is counted over; 0 leaves the MTP head out.
        memory: bytes of main memory for hidden states; None for half of what is free.
    """

    reference: Path
    work: Path
    data: tuple[str, ...]
    quantized: Path | None = None
    bits: tuple[int, ...] = BITS
    group_size: int = 128
    limit: int | None = None
    max_length: int = 512
    drafts: int = 2
    seed: int = 0
    device: str | None = None
    dtype: str = "float32"
    batch_tokens: int | None = None
    memory: int | None = None


@dataclass(frozen=True)
class Scan:
    """Sums by document of every variant, and what they rest on.

    ``sums``: by :func:`variant_key`; arrays ``[documents]``: ``kld`` (nats) and ``top1`` over the predicted tokens,
    or ``accepted`` drafts over ``positions``.
    """

    units: tuple[Unit, ...]
    forms: tuple[Form, ...]
    documents: tuple[EncodedDocument, ...]
    sums: dict[str, dict[str, NDArray[np.float64]]]
    settings: dict[str, Any]
    environment: dict[str, str]
    fingerprints: dict[str, str]


def variant_key(form: Form, name: str) -> str:
    """Of a unit (by its name), or of :data:`EVERYTHING`, in ``form``."""
    return f"{form.key}.{name}"


def scan(request: ScanRequest, *, on_progress: OnProgress | None = None) -> Scan:
    """Replace each unit by each form of it, all else as in the reference.

    ``on_progress(done, total)`` counts layers that a variant has passed.

    Raises:
        HybridError: a checkpoint that cannot be computed with, documents that cannot be read, groups that do not
            divide a module, or too little memory.
    """
    if request.dtype not in _DTYPES:
        raise HybridError(f"dtype {request.dtype!r} is not known", remedy=f"One of: {', '.join(DTYPES)}.")
    need("scipy")  # an hour before intervals are made with it
    device = device_of(request.device)
    weights = CheckpointWeights(request.reference)
    refuse_quantized_reference(weights)
    units = units_of(weights.layout, draft=weights.has_mtp and request.drafts > 0)
    forms = _forms(request, weights, units)
    quantized = [form.weights for form in forms if isinstance(form, Stored)]
    documents = documents_of(
        request.data,
        weights,
        quantized,
        limit=request.limit,
        max_length=request.max_length,
        seed=request.seed,
    )
    batches = make_batches(
        [document.input_ids for document in documents], request.batch_tokens or _BATCH_TOKENS[device.type]
    )
    store = ResultStore(request.work, _key(request, weights, documents, batches, device))
    passes = Passes(
        weights,
        device,
        _DTYPES[request.dtype],
        batches,
        len(documents),
        request.drafts,
        memory=free_memory() // 2 if request.memory is None else request.memory,
    )
    with exact_float32(device):
        sums = _run(passes, store, units, forms, on_progress)
    fingerprints = {"reference": fingerprint(weights.checkpoint)}
    if quantized:
        fingerprints["quantized"] = fingerprint(quantized[0].checkpoint)
    return Scan(
        tuple(units),
        tuple(forms),
        tuple(documents),
        sums,
        _settings(request, documents, device),
        environment(str(device)),
        fingerprints,
    )


def _forms(request: ScanRequest, weights: CheckpointWeights, units: list[Unit]) -> list[Form]:
    forms: list[Form] = []
    if request.quantized is not None:
        quantized = CheckpointWeights(request.quantized)
        refuse_other_model(weights, quantized, str(request.quantized))
        stored = Stored(quantized, weights.layout.layers_prefix)
        if not any(stored.covers(unit) for unit in units):
            raise HybridError(
                f"{request.quantized} holds no quantized module",
                remedy="Give a GPTQ checkpoint as QUANT, or none, to round the original's modules.",
            )
        forms.append(stored)
    for bits in dict.fromkeys(request.bits):
        if not 2 <= bits <= 8:
            raise HybridError(
                f"--bits {bits}: modules are rounded to 2 to 8 bits", remedy="Such as --bits 4."
            )
        rounded = Rounded(bits, request.group_size)
        rounded.refuse_impossible(units)
        forms.append(rounded)
    if not forms:
        raise HybridError("there is nothing to compare with", remedy="Give QUANT, --bits, or both.")
    return forms


def _run(
    passes: Passes,
    store: ResultStore,
    units: Sequence[Unit],
    forms: Sequence[Form],
    on_progress: OnProgress | None,
) -> dict[str, dict[str, NDArray[np.float64]]]:
    layers: list[Variant] = []
    heads: list[tuple[str, Form, Unit]] = []
    drafts: list[tuple[str, Form, Unit]] = []
    for form in forms:
        covered = [unit for unit in units if form.covers(unit)]
        in_layers = [unit for unit in covered if unit.place == "layer"]
        layers += [Variant(unit.name, form, (unit,)) for unit in in_layers]
        if in_layers:
            layers.append(Variant(EVERYTHING, form, tuple(in_layers)))
        for unit in covered:
            if unit.place != "layer":
                (heads if unit.place == "head" else drafts).append((variant_key(form, unit.name), form, unit))
    wanted = [*(variant.key for variant in layers), *(key for key, _, _ in (*heads, *drafts))]
    if any(unit.place == "draft" for unit in units):
        wanted.append(REFERENCE_DRAFTS)
    found = {key: arrays for key in wanted if (arrays := store.load(key)) is not None}
    if len(found) < len(wanted):

        def keep(key: str, arrays: Mapping[str, NDArray[np.float64]]) -> None:
            found[key] = dict(arrays)
            store.save(key, arrays)

        passes.run(
            [variant for variant in layers if variant.key not in found],
            [entry for entry in heads if entry[0] not in found],
            [entry for entry in drafts if entry[0] not in found],
            reference_drafts=REFERENCE_DRAFTS if REFERENCE_DRAFTS in {*wanted} - {*found} else None,
            keep=keep,
            on_progress=on_progress,
        )
    return {key: found[key] for key in wanted}


def _key(
    request: ScanRequest,
    weights: CheckpointWeights,
    documents: Sequence[EncodedDocument],
    batches: Sequence[Batch],
    device: torch.device,
) -> dict[str, Any]:
    return {
        "reference": state_key(weights.checkpoint, {}),
        "documents": [document.key for document in documents],
        "batches": [list(batch.numbers) for batch in batches],
        "dtype": request.dtype,
        "drafts": request.drafts,
        "environment": environment(str(device)),
    }


def _settings(
    request: ScanRequest, documents: Sequence[EncodedDocument], device: torch.device
) -> dict[str, Any]:
    return {
        # A path of this machine is nobody else's business.
        "data": [Path(spec).name if Path(spec).exists() else spec for spec in request.data],
        "documents": len(documents),
        "tokens": sum(len(document.input_ids) for document in documents),
        "limit": request.limit,
        "max_length": request.max_length,
        "bits": list(request.bits),
        "group_size": request.group_size,
        "drafts": request.drafts,
        "seed": request.seed,
        "dtype": request.dtype,
        "device": device.type,
    }
