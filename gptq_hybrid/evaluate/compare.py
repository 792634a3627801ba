"""Two quantized checkpoints on the same documents: differences, intervals, and a test.

The test is a sign-flip test (Fisher 1935), exact for any sample size. Under the null hypothesis both checkpoints
are alike, so on each document either could have had the other's scores: the sign of a document's difference is a
coin toss. The test rejects checkpoints that differ in any way. One that is a little better on most documents and
much worse on a few can be called better although the means are equal (``bench/quality``, "other shape").
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from .bootstrap import (
    RESAMPLES,
    Array,
    Draws,
    Estimate,
    build_draws,
    interval,
    ratio,
    resample,
)
from .documents import (
    KLD,
    NLL,
    TOP1,
    DocumentScores,
    RateColumns,
    Sums,
    group_by_domain,
    refuse_unpaired,
)
from .summary import OVERALL

Verdict = Literal["better", "worse", "no difference shown"]
ALPHA = 0.05
EXACT = 14  # documents up to which all 2^n signs are tried
FLIPS = 9_999
# Each figure that is compared, and whether more of it is better.
MEASURES: dict[str, bool] = {
    "kld_mean": False,
    "top1": True,
    "log_perplexity": False,
    "acceptance_length": True,
}


@dataclass(frozen=True, slots=True)
class Difference:
    """One figure of A minus that of B.

    Attributes:
        measure: one of ``MEASURES``. KLD and log perplexity in nats per token, top-1 as a share, acceptance length
            in tokens per step.
        difference: with its paired interval over documents.
        p: two-sided p-value of the sign-flip test, exact or from 9,999 random signs.
        p_holm: corrected for the number of domains (Holm 1979), for each measure separately; over all it is ``p``.
        verdict: on A, from ``p_holm`` at 5 %.
    """

    measure: str
    difference: Estimate
    p: float
    p_holm: float
    verdict: Verdict


@dataclass(frozen=True, slots=True)
class DomainComparison:
    """The differences in one domain or over all; acceptance length only if both have an MTP head."""

    domain: str
    documents: int
    differences: tuple[Difference, ...]
    warnings: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Comparison:
    """Checkpoint ``a`` minus checkpoint ``b``: a negative difference of KLD means that ``a`` is closer.

    Attributes:
        kld_ratio: mean KLD of ``a`` over that of ``b``, with its paired interval; None in files of older versions.
    """

    a: str
    b: str
    overall: DomainComparison
    domains: tuple[DomainComparison, ...]
    kld_ratio: Estimate | None = None


def compare(
    names: tuple[str, str],
    a: Sequence[DocumentScores],
    b: Sequence[DocumentScores],
    *,
    resamples: int = RESAMPLES,
    seed: int = 0,
) -> Comparison:
    """Compare two checkpoints that were scored on the same documents.

    Documents are pooled within a domain, and all domains weigh alike, as in :func:`summarize`.

    Raises:
        ScoresError: the documents are not the same, or cannot be summed.
    """
    domains_a, domains_b = group_by_domain(a), group_by_domain(b)
    refuse_unpaired(domains_a, domains_b, names)
    parts = {
        domain: _Parts.of(domain_a, domains_b[domain], (RateColumns.of(a), RateColumns.of(b)))
        for domain, domain_a in domains_a.items()
    }
    draws = {
        domain: build_draws([resample(domain, p.documents, resamples, seed)]) for domain, p in parts.items()
    }
    tested = {
        domain: (p.estimates(draws[domain]), p.test(np.random.default_rng([seed, p.documents])))
        for domain, p in parts.items()
    }
    corrected = {
        measure: dict(zip(tested, holm([p.get(measure, np.nan) for _, p in tested.values()]), strict=True))
        for measure in MEASURES
    }
    results = tuple(
        DomainComparison(
            domain,
            parts[domain].documents,
            tuple(_difference(m, estimates[m], p[m], corrected[m][domain]) for m in estimates),
            _warnings(parts[domain].documents, len(parts)),
        )
        for domain, (estimates, p) in tested.items()
    )
    return Comparison(*names, _overall(parts, resamples, seed), results, _kld_ratio(parts, resamples, seed))


@dataclass(frozen=True, slots=True)
class _Parts:
    """For each document, the difference of the sums and their denominators; columns as in ``measures``."""

    measures: tuple[str, ...]
    differences: Array  # [n, measures]
    counts: Array  # [n, measures]
    kld: Array  # [n, 2]: sums of A and of B

    @property
    def documents(self) -> int:
        return len(self.differences)

    @classmethod
    def of(
        cls,
        a: Sequence[DocumentScores],
        b: Sequence[DocumentScores],
        columns: tuple[RateColumns, RateColumns],
    ) -> _Parts:
        sums = [Sums.of(side, own) for side, own in zip((a, b), columns, strict=True)]
        numerators = [s.numerators[:, [KLD, TOP1, NLL]] for s in sums]
        difference, counts = numerators[0] - numerators[1], sums[0].denominators[:, [KLD, TOP1, NLL]]
        measures = ["kld_mean", "top1", "log_perplexity"]
        positions = [np.array([len(d.drafts) if d.drafts.size else 0 for d in side]) for side in (a, b)]
        if positions[0].sum() and np.array_equal(*positions):
            accepted = [s.numerators[:, own.quant].sum(axis=1) for s, own in zip(sums, columns, strict=True)]
            difference = np.column_stack([difference, accepted[0] - accepted[1]])
            counts = np.column_stack([counts, positions[0]])
            measures.append("acceptance_length")
        kld = np.column_stack([s.numerators[:, KLD] for s in sums])
        return cls(tuple(measures), difference, counts.astype(np.float64), kld)

    def estimates(self, draws: Draws) -> dict[str, Estimate]:
        rows = ratio(draws.weights @ self.differences, draws.weights @ self.counts)
        return {m: interval(rows[:, i], draws) for i, m in enumerate(self.measures)}

    def test(self, rng: np.random.Generator) -> dict[str, float]:
        return dict(zip(self.measures, sign_flip(self.differences, rng).tolist(), strict=True))


def _overall(parts: dict[str, _Parts], resamples: int, seed: int) -> DomainComparison:
    draws = build_draws([resample(domain, p.documents, resamples, seed) for domain, p in parts.items()])
    differences = []
    for measure in MEASURES:
        measured = [
            (s, p) for s, p in zip(draws.slices(), parts.values(), strict=True) if measure in p.measures
        ]
        if not measured:
            continue
        rows, shares = np.zeros(len(draws.weights)), np.zeros(draws.documents)
        for columns, p in measured:
            i, weights = p.measures.index(measure), draws.weights[:, columns]
            rows += ratio(weights @ p.differences[:, i], weights @ p.counts[:, i]) / len(measured)
            shares[columns] = p.differences[:, i] / p.counts[:, i].sum()
        p_value = float(sign_flip(shares[:, None], np.random.default_rng([seed, len(parts)]))[0])
        differences.append(_difference(measure, interval(rows, draws), p_value, p_value))
    return DomainComparison(OVERALL, draws.documents, tuple(differences), _warnings(draws.documents, 1))


def _kld_ratio(parts: dict[str, _Parts], resamples: int, seed: int) -> Estimate | None:
    """Mean KLD of A over that of B, domains alike; None where B has none."""
    draws = build_draws([resample(domain, p.documents, resamples, seed) for domain, p in parts.items()])
    means = np.zeros((len(draws.weights), 2))
    for columns, p in zip(draws.slices(), parts.values(), strict=True):
        weights = draws.weights[:, columns]
        means += ratio(weights @ p.kld, weights @ p.counts[:, :1]) / len(parts)
    rows = ratio(means[:, 0], means[:, 1])
    return interval(rows, draws) if np.isfinite(rows[0]) else None


def sign_flip(differences: Array, rng: np.random.Generator) -> Array:
    """Return the two-sided p-value of each column of ``differences`` ``[n, measures]``.

    It is the share of random signs whose sum is at least as large. All signs are tried up to 14 documents. Above
    that it is (1 + hits) / (1 + 9,999), which keeps the level as well (Phipson & Smyth 2010).
    """
    n = len(differences)
    observed = np.abs(differences.sum(axis=0))
    exact = n <= EXACT
    if exact:
        # The first sign is fixed: flipping all of them changes no absolute value.
        signs = 1.0 - 2.0 * ((np.arange(2 ** (n - 1))[:, None] >> np.arange(n)) & 1)
    else:
        signs = 1.0 - 2.0 * rng.integers(0, 2, size=(FLIPS, n), dtype=np.int8)
    # Sums in another order differ in the last bits.
    margin = 1e-9 * np.abs(differences).sum(axis=0)
    hits = (np.abs(signs @ differences) >= observed - margin).sum(axis=0)
    p: Array = hits / len(signs) if exact else (1 + hits) / (1 + FLIPS)
    return p


def holm(p: Sequence[float]) -> list[float]:
    """Apply Holm's step-down correction; NaN stays and does not count as a test."""
    corrected, largest = [float("nan")] * len(p), 0.0
    order = sorted((i for i in range(len(p)) if np.isfinite(p[i])), key=lambda i: p[i])
    for rank, i in enumerate(order):
        largest = max(largest, min(1.0, (len(order) - rank) * p[i]))
        corrected[i] = largest
    return corrected


def _difference(measure: str, estimate: Estimate, p: float, p_holm: float) -> Difference:
    verdict: Verdict = "no difference shown"
    if p_holm <= ALPHA and estimate.value != 0:
        verdict = "better" if (estimate.value > 0) == MEASURES[measure] else "worse"
    return Difference(measure, estimate, p, p_holm, verdict)


def _warnings(documents: int, domains: int) -> tuple[str, ...]:
    if documents <= EXACT and domains * 2.0 ** (1 - documents) > ALPHA:
        after = f" after the correction for {domains} domains" if domains > 1 else ""
        return (f"{documents} documents are too few to show any difference at 5 %{after}",)
    return ()
