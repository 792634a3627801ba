"""From counts to an order of tokens, and what its first N hold of text it was not counted from."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

# Sizes that coverage is given for.
SIZES = tuple(1 << power for power in range(10, 17))

Numbers: TypeAlias = NDArray[np.float64]


def rank(counts: Numbers, first: Sequence[int] = ()) -> list[int]:
    """Ids that were counted, most frequent first, of equal ones the lower first; ``first`` go before all."""
    order = np.argsort(-counts, kind="stable")
    seen = order[: int(np.count_nonzero(counts))].tolist()
    front = list(dict.fromkeys(first))
    there = frozenset(front)
    return front + [i for i in seen if i not in there]


def shares(ranked: Sequence[int], counts: Numbers, sizes: Sequence[int] = SIZES) -> dict[int, float]:
    """The share of ``counts`` that the first N ids hold, by N.

    Args:
        ranked: distinct ids; those missing follow from 0 on.
        counts: of other text than ``ranked`` was counted from, [vocab_size].
        sizes: the N asked for. Those above the vocabulary are left out.

    Returns:
        Shares from 0 to 1; empty if nothing was counted.
    """
    held = _held(ranked, counts)
    total = counts.sum()
    return {n: float(held[n - 1] / total) for n in sizes if n <= len(counts)} if total else {}


def expected(ranked: Sequence[int], vocab_size: int, tokens: float) -> Numbers:
    """What a text of ``tokens`` tokens would hold of each id, if ``ranked`` were its order: float64 [vocab_size].

    By Zipf's law, as 1 / (place + 3). In the 65 M tokens that the list for Qwen3.5 was counted from, this gives
    the shares at places 10, 100, 1,000 and 10,000 within 10 %, and at 60,000 2.4 times too much.
    """
    found = np.zeros(vocab_size)
    found[list(ranked)] = 1 / (np.arange(len(ranked)) + 3.0)
    scaled: Numbers = found * (tokens / found.sum())
    return scaled


def held_out_shares(
    folds: Numbers,
    first: Sequence[int] = (),
    sizes: Sequence[int] = SIZES,
    *,
    prior: Numbers | float = 0.0,
) -> dict[int, float]:
    """:func:`shares` of every document, ranked by the documents of the other folds.

    Args:
        folds: counts by part, [folds, vocab_size].
        first: as for :func:`rank`.
        prior: counts to add to those of the others, known beforehand.

    Returns:
        By N; empty if all documents are in one fold, so that nothing could be held out.
    """
    if np.count_nonzero(folds.sum(axis=1)) < 2:
        return {}
    total = folds.sum(axis=0)
    held = np.zeros(len(total))
    for fold in folds:
        held += _held(rank(total - fold + prior, first), fold)
    return {n: float(held[n - 1] / total.sum()) for n in sizes if n <= len(total)}


def _held(ranked: Sequence[int], counts: Numbers) -> Numbers:
    """What the first 1, 2, … ids hold of ``counts``, [vocab_size]."""
    missing: NDArray[np.bool_] = np.ones(len(counts), dtype=bool)
    missing[list(ranked)] = False
    order = np.concatenate((np.asarray(ranked, dtype=np.int64), np.flatnonzero(missing)))
    held: Numbers = np.cumsum(counts[order])
    return held
