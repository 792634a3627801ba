"""Documents of token ids, padded on the right into batches."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch


@dataclass(frozen=True, slots=True)
class Batch:
    """``tokens`` int64 ``[documents, length]``, padded on the right with 0; ``numbers`` and ``lengths`` by row.

    Every mixer of the hybrid is causal, so what stands right of a document cannot reach into it: padded positions
    are computed and thrown away, and no mask is needed.
    """

    tokens: torch.Tensor
    numbers: tuple[int, ...]
    lengths: tuple[int, ...]


def make_batches(documents: Sequence[Sequence[int]], batch_tokens: int) -> list[Batch]:
    """Batches of at most ``batch_tokens`` tokens, padding included (one longer document makes its own).

    Documents of similar length go together; ``numbers`` are their places in ``documents``.
    """
    order = sorted(range(len(documents)), key=lambda number: (len(documents[number]), number))
    batches: list[Batch] = []
    group: list[int] = []
    for number in order:
        # Sorted by length: the newest is the longest, and the batch is padded to it.
        if group and len(documents[number]) * (len(group) + 1) > batch_tokens:
            batches.append(_padded(documents, group))
            group = []
        group.append(number)
    if group:
        batches.append(_padded(documents, group))
    return batches


def _padded(documents: Sequence[Sequence[int]], numbers: list[int]) -> Batch:
    lengths = tuple(len(documents[number]) for number in numbers)
    tokens = torch.zeros(len(numbers), max(lengths), dtype=torch.int64)
    for row, number in enumerate(numbers):
        tokens[row, : lengths[row]] = torch.tensor(list(documents[number]), dtype=torch.int64)
    return Batch(tokens, tuple(numbers), lengths)
