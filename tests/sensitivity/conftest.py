"""The small trained model over a few short documents."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from gptq_hybrid.sensitivity._passes import Passes
from gptq_hybrid.streaming import Batch, CheckpointWeights, make_batches

MINI = Path(__file__).parents[2] / "bench" / "mini" / "checkpoint"
DRAFTS = 2
# Ids of a few documents of unequal length. Their content does not matter: two computations must agree on any.
DOCUMENTS = [
    [(7 * i * i + 13 * i + n) % 8000 for i in range(length)] for n, length in enumerate((21, 12, 17))
]


@pytest.fixture(scope="session")
def weights() -> CheckpointWeights:
    return CheckpointWeights(MINI)


@pytest.fixture(scope="session")
def batches() -> list[Batch]:
    return make_batches(DOCUMENTS, 40)


@pytest.fixture
def passes(weights: CheckpointWeights, batches: list[Batch]) -> Callable[..., Passes]:
    """Make passes over the documents, with memory for ``variants`` states at a time."""

    def make(variants: int = 100) -> Passes:
        tokens = sum(batch.tokens.numel() for batch in batches)
        memory = (variants + 4) * tokens * 256 * 4
        cpu = torch.device("cpu")
        return Passes(weights, cpu, torch.float32, batches, len(DOCUMENTS), DRAFTS, memory=memory)

    return make
