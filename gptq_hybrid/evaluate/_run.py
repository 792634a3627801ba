"""``qwen36 eval``: run the reference and each quantized checkpoint over the same documents."""

from __future__ import annotations

import hashlib
import shutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from gptq_hybrid.calibration import EncodedDocument
from gptq_hybrid.checkpoint.fingerprint import checkpoint_fingerprint
from gptq_hybrid.common.errors import HybridError
from gptq_hybrid.common.extras import need
from gptq_hybrid.common.machine import environment
from gptq_hybrid.common.paths import keep_paths
from gptq_hybrid.streaming import Batch, CheckpointWeights, OutputHead, TextStack

from ._result import Evaluation, build_evaluation
from .documents import DocumentScores
from .inputs import (
    REFERENCE,
    RunOptions,
    batch_documents,
    checkpoint_name,
    choose_device,
    describe_run,
    exact_float32,
    label_checkpoints,
    parse_dtype,
    read_documents,
    refuse_other_model,
    refuse_quantized_reference,
)
from .passes import Pass, PassSettings, run_pass
from .states import StateStore, state_key
from .tokens import score_documents

OnProgress = Callable[[str, int, int], None]
OnNote = Callable[[str], None]


@dataclass(frozen=True, slots=True)
class EvalRequest(RunOptions):
    """The request of ``qwen36 eval``; the fields of :class:`RunOptions` are keywords.

    Attributes:
        reference: the BF16 original.
        quantized: one or more checkpoints of it, BF16 or GPTQ.
        data: JSONL files, folders of ``DOMAIN.jsonl``, or calibration sources (see ``load_documents``).
        work: folder for intermediate states; None keeps none.
        save_every: seconds between two savings of states.
    """

    reference: Path
    quantized: tuple[Path, ...]
    data: tuple[str, ...]
    work: Path | None = None
    save_every: float = 60.0

    def __post_init__(self) -> None:
        keep_paths(self, "reference", "quantized", "work")


@dataclass(frozen=True, slots=True)
class Scored:
    """Scores of each quantized checkpoint by label, and how they were made."""

    scores: dict[str, list[DocumentScores]]
    settings: dict[str, Any]
    environment: dict[str, str]
    fingerprints: dict[str, str]
    peak_gpu_bytes: int | None


def score(
    request: EvalRequest, *, on_progress: OnProgress | None = None, on_note: OnNote = lambda _: None
) -> Scored:
    """Run every checkpoint over the documents.

    ``on_progress(what, done, total)`` is called as layers and batches finish, ``on_note`` with a line for people if
    kept states are damaged and run again.

    Raises:
        HybridError: a checkpoint cannot be run, documents cannot be read, tokenizers differ, or the disk is too
            full for the states.
    """
    dtype = parse_dtype(request.dtype)
    device = choose_device(request.device)
    labels = label_checkpoints(request.quantized)
    reference = CheckpointWeights(request.reference)
    refuse_quantized_reference(reference)
    others = {label: CheckpointWeights(path) for label, path in labels.items()}
    for label, weights in others.items():
        refuse_other_model(reference, weights, label)
    if request.drafts:
        for weights in (reference, *others.values()):
            weights.has_mtp  # noqa: B018 - refuses half an MTP head now, not after an hour
    documents = read_documents(request.data, reference, list(others.values()), request)
    batches = batch_documents(documents, request, device)
    settings = PassSettings(device, dtype, request.drafts)
    runner = _Runner(request, settings, documents, batches, on_progress, on_note)
    runner.refuse_full_disk(reference, 1 + len(others))
    scores = {}
    with exact_float32(device):
        if device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(device)
        base = runner.run_pass(reference, REFERENCE)
        for label, weights in others.items():
            own = runner.run_pass(weights, label)
            scores[label] = runner.score(label, (reference, base), (weights, own))
            del own
    runner.remove_states(reference, list(others.values()))
    keys = "".join(sorted(document.key for document in documents))
    return Scored(
        scores,
        {
            **describe_run(request.data, documents, request, device),
            "documents_sha256": hashlib.sha256(keys.encode()).hexdigest(),
        },
        environment(str(device)),
        {
            REFERENCE: checkpoint_fingerprint(reference.checkpoint),
            **{label: checkpoint_fingerprint(weights.checkpoint) for label, weights in others.items()},
        },
        torch.cuda.max_memory_allocated(device) if device.type == "cuda" else None,
    )


def evaluate(
    request: EvalRequest, *, on_progress: OnProgress | None = None, on_note: OnNote = lambda _: None
) -> Evaluation:
    """Score every checkpoint, summarize by domain, and compare each pair; the callbacks are those of :func:`score`.

    Raises:
        HybridError: see :func:`score`; or the extra ``eval`` is not installed.
    """
    need("scipy")
    scored = score(request, on_progress=on_progress, on_note=on_note)
    return build_evaluation(
        scored.scores,
        reference=checkpoint_name(request.reference),
        environment=scored.environment,
        settings={**scored.settings, "peak_gpu_bytes": scored.peak_gpu_bytes},
        fingerprints=scored.fingerprints,
        seed=request.seed,
    )


class _Runner:
    """Runs checkpoints over one set of batches, and keeps their states in the request's work folder."""

    def __init__(
        self,
        request: EvalRequest,
        settings: PassSettings,
        documents: Sequence[EncodedDocument],
        batches: Sequence[Batch],
        on_progress: OnProgress | None,
        on_note: OnNote,
    ) -> None:
        self.request = request
        self.settings = settings
        self.documents = documents
        self.batches = batches
        self.on_progress = on_progress
        self.on_note = on_note

    def store(self, weights: CheckpointWeights) -> StateStore:
        """Return the place for the states of ``weights`` over these documents."""
        assert self.request.work is not None
        settings = {
            "documents": [document.key for document in self.documents],
            "batches": [list(batch.numbers) for batch in self.batches],
            "dtype": self.request.dtype,
            "drafts": self.request.drafts,
            "environment": environment(str(self.settings.device)),
        }
        key = state_key(weights.checkpoint, settings)
        return StateStore(self.request.work, key, every=self.request.save_every, on_discard=self.on_note)

    def refuse_full_disk(self, weights: CheckpointWeights, checkpoints: int) -> None:
        """Make sure, before hours of work, that the states of all checkpoints fit on the disk.

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
                f"hidden states take up to {needed / 1e9:.1f} GB in {self.request.work}, where "
                f"{free / 1e9:.1f} GB are free",
                remedy="Give another folder with --out, fewer or shorter documents, or --no-keep-states.",
            )

    def remove_states(self, reference: CheckpointWeights, others: Sequence[CheckpointWeights]) -> None:
        """Remove the states of all checkpoints but the reference, which its next checkpoint will use."""
        if self.request.work is not None:
            reference_path = self.store(reference).path
            for weights in others:
                if (store := self.store(weights)).path != reference_path:
                    store.remove()

    def run_pass(self, weights: CheckpointWeights, label: str) -> Pass:
        return run_pass(
            weights,
            self.batches,
            self.settings,
            store=self.store(weights) if self.request.work is not None else None,
            has_mtp=weights.has_mtp,
            on_layer=self._report(f"{label}: layers"),
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
            on_batch=self._report(f"{label}: scores"),
        )

    def _report(self, what: str) -> Callable[[int, int], None] | None:
        on_progress = self.on_progress
        return None if on_progress is None else lambda done, total: on_progress(what, done, total)
