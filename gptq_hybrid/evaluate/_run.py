"""``qwen36 eval``: the reference and each quantized checkpoint over the same documents."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from gptq_hybrid.calibration import EncodedDocument, encode_documents, load_documents
from gptq_hybrid.checkpoint import HybridError
from gptq_hybrid.streaming import Batch, CheckpointWeights, OutputHead, TextStack, make_batches

from ._environment import environment
from ._evaluation import Evaluation, evaluation
from ._pass import Pass, PassSettings, run_pass
from ._scores import DocumentScores
from ._states import StateStore, fingerprint, state_key
from ._tokens import score_documents

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
        HybridError: a checkpoint that cannot be computed with, documents that cannot be read, or tokenizers that
            differ.
    """
    device = torch.device(request.device or ("cuda" if torch.cuda.is_available() else "cpu"))
    if request.dtype not in _DTYPES:
        raise HybridError(f"dtype {request.dtype!r} is not known", remedy=f"One of: {', '.join(DTYPES)}.")
    labels = _labels(request.quantized)
    reference = CheckpointWeights(request.reference)
    others = {label: CheckpointWeights(path) for label, path in labels.items()}
    for label, weights in others.items():
        _refuse_other_model(reference, weights, label)
    documents = _documents(request)
    batches = make_batches(
        [document.input_ids for document in documents], request.batch_tokens or _BATCH_TOKENS[device.type]
    )
    settings = PassSettings(device, _DTYPES[request.dtype], request.drafts)
    if device.type == "cuda":
        # TF32 would round the inputs of every product to ten bits, a hundred times the error of float32.
        torch.backends.cuda.matmul.allow_tf32 = False
        torch.cuda.reset_peak_memory_stats(device)
    run = _Runner(request, settings, documents, batches, on_progress)
    base = run.run_pass(reference, "reference")
    scores = {}
    for label, weights in others.items():
        own = run.run_pass(weights, label)
        scores[label] = run.score(label, (reference, base), (weights, own))
        if request.work is not None:
            # The reference's states stay, for the next checkpoint; these have served.
            run.store(weights).remove()
    return Scored(
        scores,
        _settings(request, documents, device),
        environment(str(device)),
        {
            "reference": fingerprint(reference.checkpoint),
            **{label: fingerprint(weights.checkpoint) for label, weights in others.items()},
        },
        torch.cuda.max_memory_allocated(device) if device.type == "cuda" else None,
    )


def evaluate(request: EvalRequest, *, on_progress: OnProgress | None = None) -> Evaluation:
    """Score every checkpoint, sum up by domain, compare each pair. See :func:`score` for errors."""
    found = score(request, on_progress=on_progress)
    settings = {**found.settings, "peak_gpu_bytes": found.peak_gpu_bytes}
    return evaluation(
        found.scores,
        reference=request.reference.resolve().name,
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


def _labels(paths: Sequence[Path]) -> dict[str, Path]:
    """A short name for each checkpoint: its folder's, with as many parents as it takes to tell them apart."""
    if not paths:
        raise HybridError("no quantized checkpoint to evaluate", remedy="qwen36 eval REF QUANT [QUANT …]")
    resolved = [path.resolve() for path in paths]
    if len(set(resolved)) < len(resolved):
        raise HybridError("a quantized checkpoint is given twice", remedy="Give each once.")
    for depth in range(1, max(len(path.parts) for path in resolved) + 1):
        names = ["/".join(path.parts[-depth:]) for path in resolved]
        if len(set(names)) == len(names):
            return dict(zip(names, paths, strict=True))
    raise AssertionError("different paths differ in a part")


def _documents(request: EvalRequest) -> list[EncodedDocument]:
    """Documents as the reference's tokenizer cuts them; every checkpoint's tokenizer must agree."""
    documents = load_documents(request.data, limit=request.limit, seed=request.seed)
    tokenizer = _tokenizer(request.reference)
    texts = [document.row["text"] for document in documents if "text" in document.row][:200]
    wanted = [tokenizer(text, add_special_tokens=False)["input_ids"] for text in texts]
    for path in request.quantized:
        own = _tokenizer(path)
        for text, ids in zip(texts, wanted, strict=True):
            if own(text, add_special_tokens=False)["input_ids"] != ids:
                raise HybridError(
                    f"{path} has another tokenizer than {request.reference}: other tokens for {text[:40]!r}",
                    remedy="Copy the original's tokenizer files into the checkpoint, or give its own original.",
                )
    encoded = encode_documents(documents, tokenizer, request.max_length)
    if not encoded:
        raise HybridError("no document has 10 tokens or more", remedy="Give longer texts with --data.")
    return encoded


def _tokenizer(path: Path) -> Any:
    from transformers import AutoTokenizer

    try:
        return AutoTokenizer.from_pretrained(path)
    except (OSError, ValueError) as error:
        raise HybridError(f"{path} has no tokenizer that can be read: {error}") from error


def _refuse_other_model(reference: CheckpointWeights, weights: CheckpointWeights, label: str) -> None:
    mine = {linear.name: linear for linear in reference.layout.quantized}
    theirs = {linear.name: linear for linear in weights.layout.quantized}
    # A text-only checkpoint has the same layers under another prefix.
    prefixes = (reference.layout.layers_prefix, weights.layout.layers_prefix)
    shapes = [
        {(name.removeprefix(prefix), q.out_features, q.in_features) for name, q in found.items()}
        for found, prefix in zip((mine, theirs), prefixes, strict=True)
    ]
    vocabularies = [int(w.checkpoint.text_config["vocab_size"]) for w in (reference, weights)]
    if shapes[0] != shapes[1] or vocabularies[0] != vocabularies[1]:
        raise HybridError(
            f"{label} is not a checkpoint of the reference's model: layers or vocabulary differ in shape",
            remedy="Give the original it was quantized from as REF.",
        )


def _settings(
    request: EvalRequest, documents: Sequence[EncodedDocument], device: torch.device
) -> dict[str, Any]:
    digest = hashlib.sha256("".join(sorted(document.key for document in documents)).encode())
    return {
        "data": list(request.data),
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
