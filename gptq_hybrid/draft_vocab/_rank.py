"""From counts to a ranking of tokens, and how much of other text its first N tokens hold."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

# The N for which coverage is computed.
SIZES = tuple(1 << power for power in range(10, 17))

Numbers: TypeAlias = NDArray[np.float64]


def rank(counts: Numbers, first: Sequence[int] = ()) -> list[int]:
    """Rank the counted ids, most frequent first, the lower of equal ones first; ``first`` goes before all."""
    order = np.argsort(-counts, kind="stable")
    counted = order[: int(np.count_nonzero(counts))].tolist()
    front = list(dict.fromkeys(first))
    placed = frozenset(front)
    return front + [i for i in counted if i not in placed]


def shares(ranked: Sequence[int], counts: Numbers, sizes: Sequence[int] = SIZES) -> dict[int, float]:
    """Return the share of ``counts`` that the first N ids hold, by N.

    Args:
        ranked: distinct ids; all others follow in ascending order.
        counts: ``[vocab_size]``, of other text than ``ranked`` was counted from.
        sizes: the N. Those above the vocabulary are left out.

    Returns:
        Shares from 0 to 1; empty if nothing was counted.
    """
    held = _held(ranked, counts)
    total = counts.sum()
    return {n: float(held[n - 1] / total) for n in sizes if n <= len(counts)} if total else {}


def expected_counts(ranked: Sequence[int], vocab_size: int, tokens: float) -> Numbers:
    """Estimate the counts of a text of ``tokens`` tokens whose ranking is ``ranked``: float64 ``[vocab_size]``.

    Counts follow Zipf's law as 1 / (place + 3). For the 65 M tokens that the list for Qwen3.5 was counted from,
    this gives the shares at places 10, 100, 1,000 and 10,000 within 10 %, and at 60,000 a share 2.4 times too
    large.
    """
    frequencies = np.zeros(vocab_size)
    frequencies[list(ranked)] = 1 / (np.arange(len(ranked)) + 3.0)
    scaled: Numbers = frequencies * (tokens / frequencies.sum())
    return scaled


def held_out_shares(
    folds: Numbers,
    first: Sequence[int] = (),
    sizes: Sequence[int] = SIZES,
    *,
    prior: Numbers | float = 0.0,
) -> dict[int, float]:
    """Return :func:`shares` of each part, ranked by the documents of the other parts.

    Args:
        folds: counts by part, ``[folds, vocab_size]``.
        first: as for :func:`rank`.
        sizes: as for :func:`shares`.
        prior: counts known beforehand, added to those of the other parts.

    Returns:
        By N; empty if all documents are in one part, so that nothing can be held out.
    """
    if np.count_nonzero(folds.sum(axis=1)) < 2:
        return {}
    total = folds.sum(axis=0)
    held = np.zeros(len(total))
    for fold in folds:
        held += _held(rank(total - fold + prior, first), fold)
    return {n: float(held[n - 1] / total.sum()) for n in sizes if n <= len(total)}


def _held(ranked: Sequence[int], counts: Numbers) -> Numbers:
    """Return how much of ``counts`` the first 1, 2, … ids hold, ``[vocab_size]``."""
    missing: NDArray[np.bool_] = np.ones(len(counts), dtype=bool)
    missing[list(ranked)] = False
    order = np.concatenate((np.asarray(ranked, dtype=np.int64), np.flatnonzero(missing)))
    held: Numbers = np.cumsum(counts[order])
    return held
