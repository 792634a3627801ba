"""``qwen36 eval``: the reference and each quantized checkpoint over the same documents."""

from __future__ import annotations

import hashlib
import shutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from gptq_hybrid.calibration import EncodedDocument
from gptq_hybrid.common.errors import HybridError
from gptq_hybrid.common.extras import need
from gptq_hybrid.common.machine import environment
from gptq_hybrid.streaming import Batch, CheckpointWeights, OutputHead, TextStack, make_batches

from ._evaluation import Evaluation, evaluation
from ._scores import DocumentScores
from .inputs import (
    REFERENCE,
    device_of,
    documents_of,
    exact_float32,
    labels_of,
    name_of,
    refuse_other_model,
    refuse_quantized_reference,
)
from .passes import Pass, PassSettings, run_pass
from .states import StateStore, fingerprint, state_key
from .tokens import score_documents

# Tokens run through a layer at once. At the 27B's sizes the Gated-DeltaNet layer holds about 0.4 MB a token in
# float32 while it runs.
_BATCH_TOKENS = {"cuda": 8192, "cpu": 4096}
_DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}
DTYPES = tuple(_DTYPES)

OnProgress = Callable[[str, int, int], None]


@dataclass(frozen=True, slots=True)
class EvalRequest:
    """What ``qwen36 eval`` was asked for.

    Attributes:
        reference: the BF16 original.
        quantized: one or more checkpoints of it, BF16 or GPTQ.
        data: JSONL files, folders of ``DOMAIN.jsonl``, or calibration sources (see ``load_documents``).
        limit: most documents of each domain.
        max_length: tokens kept of a document.
        drafts: MTP drafts to look at; 0 for none.
        device: torch's name of a device; None for the first GPU, or the CPU.
        dtype: arithmetic: ``float32``, which adds no rounding noise, or ``bfloat16``.
        work: folder for intermediate states; None keeps none.
        save_every: seconds between two savings of states.
    """

    reference: Path
    quantized: tuple[Path, ...]
    data: tuple[str, ...]
    limit: int | None = None
    max_length: int = 2048
    drafts: int = 2
    seed: int = 0
    device: str | None = None
    dtype: str = "float32"
    work: Path | None = None
    batch_tokens: int | None = None
    save_every: float = 60.0


@dataclass(frozen=True, slots=True)
class Scored:
    """Scores of each quantized checkpoint by label, and what they rest on."""

    scores: dict[str, list[DocumentScores]]
    settings: dict[str, Any]
    environment: dict[str, str]
    fingerprints: dict[str, str]
    peak_gpu_bytes: int | None


def score(request: EvalRequest, *, on_progress: OnProgress | None = None) -> Scored:
    """Run every checkpoint over the documents.

    ``on_progress(what, done, total)`` is called as layers and batches finish.

    Raises:
        HybridError: a checkpoint that cannot be computed with, documents that cannot be read, tokenizers that
            differ, or a disk too full for the states.
    """
    if request.dtype not in _DTYPES:
        raise HybridError(f"dtype {request.dtype!r} is not known", remedy=f"One of: {', '.join(DTYPES)}.")
    device = device_of(request.device)
    labels = labels_of(request.quantized)
    reference = CheckpointWeights(request.reference)
    refuse_quantized_reference(reference)
    others = {label: CheckpointWeights(path) for label, path in labels.items()}
    for label, weights in others.items():
        refuse_other_model(reference, weights, label)
    if request.drafts:
        for weights in (reference, *others.values()):
            weights.has_mtp  # noqa: B018 - raises for half a head, an hour before it would be met
    documents = documents_of(
        request.data,
        reference,
        list(others.values()),
        limit=request.limit,
        max_length=request.max_length,
        seed=request.seed,
    )
    batches = make_batches(
        [document.input_ids for document in documents], request.batch_tokens or _BATCH_TOKENS[device.type]
    )
    run = _Runner(
        request, PassSettings(device, _DTYPES[request.dtype], request.drafts), documents, batches, on_progress
    )
    run.refuse_full_disk(reference, 1 + len(others))
    scores = {}
    with exact_float32(device):
        if device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(device)
        base = run.run_pass(reference, REFERENCE)
        for label, weights in others.items():
            own = run.run_pass(weights, label)
            scores[label] = run.score(label, (reference, base), (weights, own))
            del own
    run.remove_states(reference, list(others.values()))
    return Scored(
        scores,
        _settings(request, documents, device),
        environment(str(device)),
        {
            REFERENCE: fingerprint(reference.checkpoint),
            **{label: fingerprint(weights.checkpoint) for label, weights in others.items()},
        },
        torch.cuda.max_memory_allocated(device) if device.type == "cuda" else None,
    )


def evaluate(request: EvalRequest, *, on_progress: OnProgress | None = None) -> Evaluation:
    """Score every checkpoint, sum up by domain, compare each pair.

    Raises:
        HybridError: see :func:`score`; or the extra ``eval`` is not installed.
    """
    need("scipy")
    found = score(request, on_progress=on_progress)
    settings = {**found.settings, "peak_gpu_bytes": found.peak_gpu_bytes}
    return evaluation(
        found.scores,
        reference=name_of(request.reference),
        environment=found.environment,
        settings=settings,
        fingerprints=found.fingerprints,
        seed=request.seed,
    )


class _Runner:
    def __init__(
        self,
        request: EvalRequest,
        settings: PassSettings,
        documents: Sequence[EncodedDocument],
        batches: Sequence[Batch],
        on_progress: OnProgress | None,
    ) -> None:
        self.request = request
        self.settings = settings
        self.documents = documents
        self.batches = batches
        self.on_progress = on_progress

    def store(self, weights: CheckpointWeights) -> StateStore:
        """Where the states of ``weights`` over these documents are kept."""
        assert self.request.work is not None
        settings = {
            "documents": [document.key for document in self.documents],
            "batches": [list(batch.numbers) for batch in self.batches],
            "dtype": self.request.dtype,
            "drafts": self.request.drafts,
            "environment": environment(str(self.settings.device)),
        }
        key = state_key(weights.checkpoint, settings)
        return StateStore(self.request.work, key, every=self.request.save_every)

    def refuse_full_disk(self, weights: CheckpointWeights, checkpoints: int) -> None:
        """Make sure, before hours of work, that the states of all checkpoints find room.

        Raises:
            HybridError: they do not.
        """
        if self.request.work is None:
            return
        tokens = sum(batch.tokens.numel() for batch in self.batches)
        size = tokens * int(weights.checkpoint.text_config["hidden_size"]) * self.settings.dtype.itemsize
        # One more while a file is replaced.
        needed = size * (checkpoints + 1)
        place = self.request.work.absolute()
        while not place.exists():
            place = place.parent
        free = shutil.disk_usage(place).free
        if needed > free:
            raise HybridError(
                f"hidden states take up to {needed / 1e9:.1f} GB in {self.request.work}; {free / 1e9:.1f} are free",
                remedy="Give another folder with --out, fewer or shorter documents, or --no-keep-states.",
            )

    def remove_states(self, reference: CheckpointWeights, others: Sequence[CheckpointWeights]) -> None:
        """Remove what has served; the reference's states stay, for its next checkpoint."""
        if self.request.work is not None:
            kept = self.store(reference).path
            for weights in others:
                if (store := self.store(weights)).path != kept:
                    store.remove()

    def run_pass(self, weights: CheckpointWeights, label: str) -> Pass:
        return run_pass(
            weights,
            self.batches,
            self.settings,
            store=self.store(weights) if self.request.work is not None else None,
            has_mtp=weights.has_mtp,
            on_layer=self._step(f"{label}: layers"),
        )

    def score(
        self, label: str, reference: tuple[CheckpointWeights, Pass], own: tuple[CheckpointWeights, Pass]
    ) -> list[DocumentScores]:
        heads = [
            OutputHead(TextStack(weights, self.settings.device, self.settings.dtype))
            for weights in (reference[0], own[0])
        ]
        return score_documents(
            self.documents,
            self.batches,
            (reference[1], heads[0]),
            (own[1], heads[1]),
            drafts=self.settings.drafts,
            on_batch=self._step(f"{label}: scores"),
        )

    def _step(self, what: str) -> Callable[[int, int], None] | None:
        report = self.on_progress
        return None if report is None else lambda done, total: report(what, done, total)


def _settings(
    request: EvalRequest, documents: Sequence[EncodedDocument], device: torch.device
) -> dict[str, Any]:
    digest = hashlib.sha256("".join(sorted(document.key for document in documents)).encode())
    return {
        # A path of this machine is nobody else's business.
        "data": [Path(spec).name if Path(spec).exists() else spec for spec in request.data],
        "documents": len(documents),
        "documents_sha256": digest.hexdigest(),
        "tokens": sum(len(document.input_ids) for document in documents),
        "limit": request.limit,
        "max_length": request.max_length,
        "drafts": request.drafts,
        "seed": request.seed,
        "dtype": request.dtype,
        "device": device.type,
    }
