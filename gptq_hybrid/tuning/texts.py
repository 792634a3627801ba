"""The texts of a tuning: which it learns from, which decide when to stop, and what a step takes."""

from __future__ import annotations

import struct
from collections.abc import Sequence
from dataclasses import dataclass
from hashlib import sha256

from gptq_hybrid.calibration import rows_sha256
from gptq_hybrid.common.errors import HybridError

# One document in ten decides when to stop.
_STOPPING = 10
_FEWEST = 2 * _STOPPING


@dataclass(frozen=True, slots=True)
class Texts:
    """Documents of token ids, in an order that depends on nothing but themselves.

    Attributes:
        steps: documents of each step of one round; the next round takes the same steps.
        stopping: documents that no gradient sees.
    """

    steps: tuple[tuple[tuple[int, ...], ...], ...]
    stopping: tuple[tuple[int, ...], ...]

    @property
    def sha256(self) -> str:
        """Of all of them, in order."""
        return rows_sha256([ids for step in self.steps for ids in step] + list(self.stopping))


def split_texts(documents: Sequence[Sequence[int]], tokens: int) -> Texts:
    """Split documents into steps of at least ``tokens`` tokens, and a stopping part.

    Raises:
        HybridError: they are too few for both.
    """
    order = sorted({tuple(ids) for ids in documents}, key=_digest)
    if len(order) < _FEWEST:
        raise HybridError(
            f"{len(order)} documents are left to tune on, beside those that were calibrated on; it takes {_FEWEST}",
            remedy="Give a larger --calibration, fewer --samples, or a recipe without [tune].",
        )
    count = len(order) // _STOPPING
    steps: list[tuple[tuple[int, ...], ...]] = []
    step: list[tuple[int, ...]] = []
    for ids in order[count:]:
        step.append(ids)
        if sum(map(len, step)) >= tokens:
            steps.append(tuple(step))
            step = []
    # What is left fills no step; where there is no other, it is one.
    if step and not steps:
        steps.append(tuple(step))
    return Texts(tuple(steps), tuple(order[:count]))


def _digest(ids: Sequence[int]) -> bytes:
    return sha256(struct.pack(f"<{len(ids)}I", *ids)).digest()
