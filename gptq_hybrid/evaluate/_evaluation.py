"""The result of an evaluation: every checkpoint against the reference, and against each other."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import combinations
from typing import Any

from ._scores import DocumentScores
from .bootstrap import LEVEL, RESAMPLES
from .compare import Comparison, compare
from .documents import ScoresError
from .summary import CheckpointSummary, summarize
from .tasks import TaskResults

SCHEMA = 1
INTERVAL = "bootstrap over documents within domains (n - 1 drawn), percentiles widened to Student's t"


@dataclass(frozen=True, slots=True)
class Statistics:
    """How intervals were made; they are reproducible from the scores with these."""

    level: float = LEVEL
    resamples: int = RESAMPLES
    seed: int = 0
    interval: str = INTERVAL
    over_all: str = "domains weigh alike; documents pooled within a domain"


@dataclass(frozen=True, slots=True)
class Evaluation:
    """What ``qwen36 eval`` found.

    Attributes:
        reference: the checkpoint that all others are held against.
        checkpoints: in the order given.
        comparisons: every pair of them, the earlier one as ``a``.
        environment: hardware and versions; settings: what the run was asked for; fingerprints: of the checkpoints,
            by name. All three are JSON objects that this class only carries.
        tasks: accuracy on tasks, where any were asked for.
    """

    reference: str
    checkpoints: tuple[CheckpointSummary, ...]
    comparisons: tuple[Comparison, ...] = ()
    environment: dict[str, Any] = field(default_factory=dict)
    settings: dict[str, Any] = field(default_factory=dict)
    fingerprints: dict[str, Any] = field(default_factory=dict)
    statistics: Statistics = field(default_factory=Statistics)
    tasks: TaskResults | None = None


def evaluation(
    scores: Mapping[str, Sequence[DocumentScores]],
    *,
    reference: str,
    environment: Mapping[str, Any] | None = None,
    settings: Mapping[str, Any] | None = None,
    fingerprints: Mapping[str, Any] | None = None,
    resamples: int = RESAMPLES,
    seed: int = 0,
) -> Evaluation:
    """Sum up the scores of each checkpoint, and compare every pair.

    Raises:
        ScoresError: no checkpoint, scores that cannot be summed up, or checkpoints scored on different documents.
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
    return Evaluation(
        reference,
        tuple(summarize(name, found, resamples=resamples, seed=seed) for name, found in scores.items()),
        tuple(pairs),
        dict(environment or {}),
        dict(settings or {}),
        dict(fingerprints or {}),
        Statistics(resamples=resamples, seed=seed),
    )
