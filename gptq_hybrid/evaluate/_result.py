"""The result of an evaluation, and its JSON file: every checkpoint against the reference, and every pair."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import combinations
from pathlib import Path
from typing import Any

from gptq_hybrid.checkpoint import read_json_object
from gptq_hybrid.common.atomic import write_json_atomic
from gptq_hybrid.common.typed_json import FormatError, read_object

from .bootstrap import LEVEL, RESAMPLES
from .compare import Comparison, compare
from .documents import DocumentScores, ScoresError
from .summary import CheckpointSummary, summarize
from .tasks import TaskResults

SCHEMA = 1
INTERVAL = "bootstrap over documents within domains (n - 1 drawn), percentiles widened to Student's t"
_REMEDY = "Run qwen36 eval again, or give a file that it wrote."


@dataclass(frozen=True, slots=True)
class Statistics:
    """How intervals were computed; with the scores, this reproduces them."""

    level: float = LEVEL
    resamples: int = RESAMPLES
    seed: int = 0
    interval: str = INTERVAL
    over_all: str = "domains weigh alike; documents pooled within a domain"


@dataclass(frozen=True, slots=True)
class Evaluation:
    """The result of ``qwen36 eval``.

    Attributes:
        reference: name of the checkpoint that all others are compared with.
        checkpoints: in the order of the request.
        comparisons: every pair of checkpoints, the earlier one as ``a``.
        environment: hardware and versions, a JSON object.
        settings: of the run, a JSON object.
        fingerprints: of the checkpoints by name, a JSON object.
        tasks: accuracy on tasks, if any were run.
    """

    reference: str
    checkpoints: tuple[CheckpointSummary, ...]
    comparisons: tuple[Comparison, ...] = ()
    environment: dict[str, Any] = field(default_factory=dict)
    settings: dict[str, Any] = field(default_factory=dict)
    fingerprints: dict[str, Any] = field(default_factory=dict)
    statistics: Statistics = field(default_factory=Statistics)
    tasks: TaskResults | None = None


def build_evaluation(
    scores: Mapping[str, Sequence[DocumentScores]],
    *,
    reference: str,
    environment: Mapping[str, Any] | None = None,
    settings: Mapping[str, Any] | None = None,
    fingerprints: Mapping[str, Any] | None = None,
    resamples: int = RESAMPLES,
    seed: int = 0,
) -> Evaluation:
    """Summarize the scores of each checkpoint, and compare every pair.

    Raises:
        ScoresError: there is no checkpoint, scores cannot be summarized, or checkpoints were scored on different
            documents.
        HybridError: the extra ``eval`` is not installed.
    """
    if not scores:
        raise ScoresError(
            "There is no checkpoint to evaluate.", remedy="Run: qwen36 eval REFERENCE QUANTIZED"
        )
    pairs = [
        compare((a, b), scores[a], scores[b], resamples=resamples, seed=seed)
        for a, b in combinations(scores, 2)
    ]
    summaries = (
        summarize(name, documents, resamples=resamples, seed=seed) for name, documents in scores.items()
    )
    return Evaluation(
        reference,
        tuple(summaries),
        tuple(pairs),
        dict(environment or {}),
        dict(settings or {}),
        dict(fingerprints or {}),
        Statistics(resamples=resamples, seed=seed),
    )


def as_json(evaluation: Evaluation) -> dict[str, Any]:
    """Return a JSON object: ``schema`` (1), then the fields of :class:`Evaluation`.

    Estimates are ``{"value", "low", "high"}``. KLD and log perplexity are in nats per token, acceptance lengths in
    tokens per step, perplexities per token. The other figures are shares between 0 and 1.
    """
    return {"schema": SCHEMA, **dataclasses.asdict(evaluation)}


def from_json(content: Mapping[str, Any], *, source: str = "This JSON") -> Evaluation:
    """Read back what :func:`as_json` returned; unknown fields are skipped.

    Raises:
        FormatError: another schema, or a field that is missing or of the wrong kind.
    """
    schema = content.get("schema")
    if schema != SCHEMA or isinstance(schema, bool):
        newer = isinstance(schema, int) and schema > SCHEMA
        raise FormatError(
            f"{source} has schema {schema!r}; this version reads schema {SCHEMA}.",
            remedy="Update vllm-qwen36-plugin." if newer else "Give a file that qwen36 eval wrote.",
        )
    evaluation: Evaluation = read_object(Evaluation, content, source, remedy=_REMEDY)
    return evaluation


def write_evaluation(path: str | Path, evaluation: Evaluation) -> None:
    """Write the JSON file, which appears only once it is complete."""
    path = Path(path)
    write_json_atomic(path, as_json(evaluation))


def read_evaluation(path: str | Path) -> Evaluation:
    """Read what :func:`write_evaluation` wrote.

    Raises:
        CheckpointError: the file is unreadable, or not a JSON object.
        FormatError: it is not an evaluation.
    """
    path = Path(path)
    return from_json(read_json_object(path), source=str(path))
