"""Intervals over documents: every statistic is a function of how often each document was drawn.

Tokens of a document depend on each other, so documents are the unit. They are drawn within each domain
(stratified). A row of weights is one draw: first the sample itself, then the sample without each document in turn
(jackknife), then the resamples. A statistic is computed for all rows at once.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

from gptq_hybrid.common.extras import need

Array: TypeAlias = NDArray[np.float64]
LEVEL = 0.95
RESAMPLES = 2000
# Tokens in a run of the two-step search for a quantile. Of 64, 128 and 512, 128 was fastest for 600 documents.
_RUN = 128
# Of 2 million tokens the runs are longer: rows × runs is what takes memory.
_MOST_RUNS = 2048


@dataclass(frozen=True, slots=True)
class Estimate:
    """A figure and its interval; the ends are None if a single document says nothing about others."""

    value: float
    low: float | None
    high: float | None


@dataclass(frozen=True, slots=True)
class Draws:
    """Weights of the documents of several domains.

    Attributes:
        weights: float64 ``[1 + N + B, N]``. Rows: the sample, N times without one document, B resamples. The
            columns of a domain are next to each other.
        sizes: documents of each domain.
    """

    weights: Array
    sizes: tuple[int, ...]

    @property
    def documents(self) -> int:
        return sum(self.sizes)

    def slices(self) -> list[slice]:
        """Return the columns of each domain."""
        ends = np.cumsum(self.sizes)
        return [slice(int(end) - size, int(end)) for end, size in zip(ends, self.sizes, strict=True)]


def resample(domain: str, documents: int, resamples: int, seed: int) -> Array:
    """Draw ``n − 1`` of ``n`` documents with replacement, B times; return how often each was drawn, ``[B, n]``.

    Drawing one less than the sample makes the variance of a resampled mean the unbiased s²/n instead of s²(n −
    1)/n² (McCarthy & Snowden 1985; Rao & Wu 1988, m = n − 1). That matters for 10 documents per domain, and over
    all for 15 domains of 10. The draws of a domain depend on its name and the seed, not on which other domains
    there are.
    """
    if documents == 1:
        return np.ones((resamples, 1))  # nothing to draw from: no variance over all, and no interval
    name = int.from_bytes(hashlib.sha256(domain.encode()).digest()[:8], "little")
    rng = np.random.default_rng([seed, name])
    drawn: Array = rng.multinomial(documents - 1, np.full(documents, 1 / documents), resamples).astype(
        np.float64
    )
    return drawn


def build_draws(resampled: Sequence[Array]) -> Draws:
    """Put the resamples of each domain side by side, below the sample and its jackknife."""
    sizes = tuple(rows.shape[1] for rows in resampled)
    total = sum(sizes)
    weights = np.concatenate(
        [np.ones((1, total)), np.ones((total, total)) - np.eye(total), np.concatenate(resampled, axis=1)]
    )
    return Draws(weights, sizes)


def ratio(numerator: Array, denominator: Array) -> Array:
    """Divide; NaN without a warning where nothing was counted."""
    with np.errstate(divide="ignore", invalid="ignore"):
        quotient: Array = np.where(denominator > 0, numerator / denominator, np.nan)
    return quotient


@dataclass(frozen=True, slots=True)
class RankedTokens:
    """Tokens sorted by value, to find quantiles for many weightings of their documents.

    Attributes:
        values: ``[T]`` ascending.
        document: ``[T]`` column of the document that the token belongs to.
        counts: ``[N, runs]`` tokens of each document in each run of the sorted tokens.
        run: tokens of a run; the last may have fewer.
    """

    values: NDArray[np.float32]
    document: NDArray[np.int64]
    counts: Array
    run: int

    @classmethod
    def of(cls, values: Sequence[NDArray[np.float32]], *, most_runs: int = _MOST_RUNS) -> RankedTokens:
        """Sort the values of each document; documents are in the order of the columns."""
        flat = np.concatenate(values)
        document = np.repeat(np.arange(len(values)), [len(v) for v in values])
        order = np.argsort(flat, kind="stable")
        document = document[order]
        run = max(_RUN, -(-len(flat) // most_runs))
        runs = -(-len(flat) // run)
        cell = document * runs + np.arange(len(flat)) // run
        counts = np.bincount(cell, minlength=len(values) * runs).reshape(len(values), runs)
        return cls(flat[order], document, counts.astype(np.float64), run)

    def quantiles(self, weights: Array, levels: Sequence[float]) -> list[Array]:
        """Return for each level ``[rows]``: the least value with at least that share of the weight at or below it.

        ``weights`` ``[rows, N]`` applies to every token of a document. Rows without weight give NaN.
        """
        reached = np.cumsum(weights @ self.counts, axis=1)
        rows = np.arange(len(weights))
        quantiles = []
        for level in levels:
            # Sums of the same weights in another order differ in the last bits.
            target = level * reached[:, -1] * (1 - 1e-12)
            block = np.minimum((reached < target[:, None]).sum(axis=1), reached.shape[1] - 1)
            before = np.where(block > 0, reached[rows, block - 1], 0.0)
            token = block[:, None] * self.run + np.arange(self.run)
            within = token < len(self.values)
            token = np.minimum(token, len(self.values) - 1)
            weight = np.where(within, weights[rows[:, None], self.document[token]], 0.0)
            passed = (before[:, None] + np.cumsum(weight, axis=1) < target[:, None]).sum(axis=1)
            place = np.minimum(block * self.run + passed, len(self.values) - 1)
            quantiles.append(np.where(reached[:, -1] > 0, self.values[place].astype(np.float64), np.nan))
        return quantiles


def degrees_of_freedom(jackknife: Array, sizes: Sequence[int]) -> float:
    """Return the degrees of freedom of the variance over all domains (Satterthwaite 1946).

    Args:
        jackknife: ``[N]`` the statistic without each document in turn.
        sizes: documents of each domain.
    """
    ends, freedom = np.cumsum(sizes), np.maximum(np.array(sizes) - 1, 1)
    parts = [jackknife[end - size : end] for end, size in zip(ends, sizes, strict=True)]
    spreads = [part - np.nanmean(part) if np.isfinite(part).any() else np.zeros(1) for part in parts]
    largest = max(float(np.nanmax(np.abs(spread))) for spread in spreads)
    if largest == 0:
        return float(freedom.sum())
    # Divided before squaring: the square of a broken checkpoint's perplexity would overflow.
    variance = np.array(
        [(size - 1) / size * np.nansum((s / largest) ** 2) for s, size in zip(spreads, sizes, strict=True)]
    )
    return float(variance.sum() ** 2 / (variance**2 / freedom).sum())


def interval(rows: Array, draws: Draws, level: float = LEVEL) -> Estimate:
    """Return the interval of a statistic from its values ``[1 + N + B]`` for the rows of ``draws.weights``.

    The ends are percentiles of the resamples, at levels widened from the normal to Student's t (Hesterberg 2015,
    "expanded percentile"): with 10 documents, 1.2 % and 98.8 % instead of 2.5 % and 97.5 %.
    """
    value, count = float(rows[0]), draws.documents
    resampled = rows[1 + count :]
    resampled = resampled[np.isfinite(resampled)]
    if max(draws.sizes) < 2 or len(resampled) == 0:
        return Estimate(value, None, None)
    special = need("scipy.special")
    freedom = degrees_of_freedom(rows[1 : 1 + count], draws.sizes)
    tail = float(special.ndtr(special.stdtrit(freedom, (1 - level) / 2)))
    return Estimate(value, float(np.quantile(resampled, tail)), float(np.quantile(resampled, 1 - tail)))
