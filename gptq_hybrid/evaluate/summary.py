"""One checkpoint compared with its reference: figures by domain and over all, with intervals.

Within a domain documents are pooled: every token, or draft position, counts alike. Over all, domains weigh alike:
the figures are those of a text to which every domain gives the same share of tokens. Intervals resample documents
within domains.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from .bootstrap import (
    RESAMPLES,
    Array,
    Draws,
    Estimate,
    RankedTokens,
    build_draws,
    interval,
    ratio,
    resample,
)
from .documents import (
    KLD,
    NLL,
    NLL_REF,
    TOP1,
    DocumentScores,
    RateColumns,
    Sums,
    average_domains,
    group_by_domain,
)

OVERALL = "all"
FEW_DOCUMENTS = 10
FEW_TOKENS = 5  # above the 99.9th percentile
_QUANTILES = {"kld_median": 0.5, "kld_p99": 0.99, "kld_p999": 0.999}


@dataclass(frozen=True, slots=True)
class Acceptance:
    """MTP drafts of one checkpoint against its own argmax.

    Attributes:
        positions: for each draft, the share that agree where all drafts before it agreed. A draft that was never
            reached ends the list.
        length: acceptance length in tokens per step: 1 + the mean number of leading drafts that agree.
    """

    positions: tuple[Estimate, ...]
    length: Estimate


@dataclass(frozen=True, slots=True)
class Summary:
    """Figures of one domain or over all: KLD in nats, perplexities per token, shares between 0 and 1.

    Attributes:
        perplexity_ratio: exp of the mean NLL of the quantized checkpoint minus that of the reference.
        acceptance_ref: the reference's; None without MTP head.
        acceptance: the quantized checkpoint's; None without MTP head.
        warnings: reasons to trust an interval less.
    """

    domain: str
    documents: int
    tokens: int
    draft_positions: int
    kld_mean: Estimate
    kld_median: Estimate
    kld_p99: Estimate
    kld_p999: Estimate
    top1: Estimate
    perplexity_ref: Estimate
    perplexity: Estimate
    perplexity_ratio: Estimate
    acceptance_ref: Acceptance | None
    acceptance: Acceptance | None
    warnings: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class CheckpointSummary:
    """The figures of one checkpoint, over all and by domain."""

    name: str
    overall: Summary
    domains: tuple[Summary, ...]


def summarize(
    name: str, documents: Sequence[DocumentScores], *, resamples: int = RESAMPLES, seed: int = 0
) -> CheckpointSummary:
    """Summarize the scores of the checkpoint ``name``.

    The same seed, documents and number of resamples give the same result, whatever the order of the documents.

    Raises:
        ScoresError: the scores cannot be summed.
        HybridError: the extra ``eval`` is not installed.
    """
    domains = group_by_domain(documents)
    columns = RateColumns.of(documents)
    resampled = {d: resample(d, len(members), resamples, seed) for d, members in domains.items()}
    sums = {d: Sums.of(members, columns) for d, members in domains.items()}
    summaries = []
    for domain, members in domains.items():
        draws = build_draws([resampled[domain]])
        ranked = RankedTokens.of([d.kld for d in members])
        quantiles = ranked.quantiles(draws.weights, tuple(_QUANTILES.values()))
        rates = sums[domain].rates(draws.weights)
        summaries.append(_summary(domain, {domain: members}, columns, draws, rates, quantiles))
    draws = build_draws(list(resampled.values()))
    rates, shares = [], np.empty_like(draws.weights)
    for own, (domain, members) in zip(draws.slices(), domains.items(), strict=True):
        weights = draws.weights[:, own]
        rates.append(sums[domain].rates(weights))
        tokens = np.array([float(len(d.kld)) for d in members])
        shares[:, own] = weights / np.maximum(weights @ tokens, 1.0)[:, None]
    ranked = RankedTokens.of([d.kld for members in domains.values() for d in members])
    quantiles = ranked.quantiles(shares, tuple(_QUANTILES.values()))
    overall = _summary(OVERALL, domains, columns, draws, average_domains(rates), quantiles)
    return CheckpointSummary(name, overall, tuple(summaries))


def _summary(
    domain: str,
    members: dict[str, list[DocumentScores]],
    columns: RateColumns,
    draws: Draws,
    rates: Array,
    quantiles: Sequence[Array],
) -> Summary:
    documents = [d for each in members.values() for d in each]
    tokens = sum(len(d.kld) for d in documents)
    kld = {key: interval(rows, draws) for key, rows in zip(_QUANTILES, quantiles, strict=True)}
    return Summary(
        domain=domain,
        documents=len(documents),
        tokens=tokens,
        draft_positions=sum(len(d.drafts) for d in documents if d.drafts.size),
        kld_mean=interval(rates[:, KLD], draws),
        top1=interval(rates[:, TOP1], draws),
        perplexity_ref=interval(_exp(rates[:, NLL_REF]), draws),
        perplexity=interval(_exp(rates[:, NLL]), draws),
        perplexity_ratio=interval(_exp(rates[:, NLL] - rates[:, NLL_REF]), draws),
        acceptance_ref=_acceptance(rates[:, columns.ref], draws),
        acceptance=_acceptance(rates[:, columns.quant], draws),
        warnings=_warnings(members, tokens),
        **kld,
    )


def _exp(nats: Array) -> Array:
    """Exponentiate, capped to stay finite for JSON: a broken checkpoint can exceed the 709 nats of a float64."""
    exponential: Array = np.exp(np.minimum(nats, 700.0))
    return exponential


def _acceptance(accepted: Array, draws: Draws) -> Acceptance | None:
    """Compute acceptance from the shares ``[rows, K]`` of positions where the first k + 1 drafts agree."""
    if accepted.shape[1] == 0 or not np.isfinite(accepted[0, 0]):
        return None
    before = np.concatenate([np.ones((len(accepted), 1)), accepted[:, :-1]], axis=1)
    positions = ratio(accepted, before)
    return Acceptance(
        tuple(interval(rows, draws) for rows in positions.T if np.isfinite(rows[0])),
        interval(1 + accepted.sum(axis=1), draws),
    )


def _warnings(members: dict[str, list[DocumentScores]], tokens: int) -> tuple[str, ...]:
    warnings = []
    few = [domain for domain, documents in members.items() if len(documents) < FEW_DOCUMENTS]
    if few and len(members) == 1:
        warnings.append(f"fewer than {FEW_DOCUMENTS} documents: intervals are too narrow")
    elif few:
        warnings.append(f"fewer than {FEW_DOCUMENTS} documents in {', '.join(few)}: intervals are too narrow")
    above = tokens - int(np.ceil(0.999 * tokens * (1 - 1e-12)))
    if above < FEW_TOKENS:
        warnings.append(f"fewer than {FEW_TOKENS} tokens lie above the 99.9th percentile: rely on the 99th")
    return tuple(warnings)
