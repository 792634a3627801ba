"""Figures of one checkpoint: exact on scores made by hand, by domain and over all."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest

from gptq_hybrid.evaluate import Estimate, ScoresError, summarize
from tests.evaluate.made import random_scores, scores


def flat(value: float) -> Estimate:
    return Estimate(value, value, value)


def test_a_checkpoint_held_against_itself_has_no_loss_and_no_width() -> None:
    documents = []
    for d in random_scores(np.random.default_rng(0), "en", 12):
        documents.append(
            replace(
                d, kld=np.zeros_like(d.kld), nll=d.nll_ref, top1=np.ones_like(d.top1), drafts=d.drafts_ref
            )
        )
    summary = summarize("same", documents).overall
    assert summary.kld_mean == summary.kld_median == summary.kld_p99 == summary.kld_p999 == flat(0.0)
    assert summary.top1 == summary.perplexity_ratio == flat(1.0)
    assert summary.acceptance == summary.acceptance_ref


def test_figures_of_a_domain_count_every_token_alike() -> None:
    documents = [
        scores("en", "a", [0.1, 0.3], top1=[True, False], nll_ref=[1, 2], nll=[1.5, 2.5]),
        scores("en", "b", [0.2] * 6, nll_ref=[0.5] * 6, nll=[0.4] * 6),
    ]
    summary = summarize("q", documents).domains[0]
    assert (summary.documents, summary.tokens) == (2, 8)
    assert summary.kld_mean.value == pytest.approx(1.6 / 8)
    assert summary.kld_median.value == pytest.approx(0.2)
    assert summary.kld_p99.value == summary.kld_p999.value == pytest.approx(0.3)
    assert summary.top1.value == 7 / 8
    assert summary.perplexity_ref.value == pytest.approx(math.exp(6 / 8))
    assert summary.perplexity.value == pytest.approx(math.exp(6.4 / 8))
    assert summary.perplexity_ratio.value == pytest.approx(math.exp(0.4 / 8))


def test_a_draft_counts_only_where_all_before_it_agreed() -> None:
    rows = [[True, True], [True, False], [False, True], [True, True]]
    worse = [[True, False], [False, True], [False, False], [True, True]]
    summary = summarize("q", [scores("en", "a", [0.1] * 6, drafts_ref=rows, drafts=worse)]).overall
    assert summary.acceptance_ref
    assert summary.acceptance
    assert [p.value for p in summary.acceptance_ref.positions] == pytest.approx([3 / 4, 2 / 3])
    assert summary.acceptance_ref.length.value == pytest.approx(1 + 3 / 4 + 2 / 4)
    assert [p.value for p in summary.acceptance.positions] == pytest.approx([2 / 4, 1 / 2])
    assert summary.acceptance.length.value == pytest.approx(1 + 2 / 4 + 1 / 4)


def test_positions_end_before_a_draft_that_was_never_reached() -> None:
    summary = summarize("q", [scores("en", "a", [0.1] * 4, drafts=[[False, True], [False, True]])]).overall
    assert summary.acceptance
    assert [p.value for p in summary.acceptance.positions] == [0.0]
    assert summary.acceptance.length.value == 1.0
    assert summary.acceptance_ref is None


def test_without_mtp_head_there_is_no_acceptance() -> None:
    summary = summarize("q", random_scores(np.random.default_rng(1), "en", 11, drafts=False))
    assert summary.overall.acceptance is None
    assert summary.overall.draft_positions == 0


def test_over_all_domains_weigh_alike_whatever_their_size() -> None:
    small = [scores("small", "a", [0.4], nll_ref=[1], nll=[2], drafts=[[True, True]])]
    large = [
        scores("large", f"{i}", [0.1] * 50, nll_ref=[1] * 50, nll=[1] * 50, drafts=[[False, False]] * 9)
        for i in range(20)
    ]
    summary = summarize("q", small + large).overall
    assert summary.kld_mean.value == pytest.approx((0.4 + 0.1) / 2)
    assert summary.kld_median.value == pytest.approx(0.1)  # half of the weight lies at or below
    assert summary.kld_p99.value == pytest.approx(0.4)
    assert summary.perplexity.value == pytest.approx(math.exp(1.5))
    assert summary.acceptance
    assert [p.value for p in summary.acceptance.positions] == pytest.approx([0.5, 1.0])
    assert summary.acceptance.length.value == pytest.approx(2.0)


def test_a_domain_without_draft_positions_has_no_say_on_acceptance() -> None:
    with_head = [scores("a", str(i), [0.1] * 4, drafts=[[True, False], [True, True]]) for i in range(3)]
    without = [scores("b", str(i), [0.1]) for i in range(3)]
    summary = summarize("q", with_head + without)
    assert summary.domains[1].acceptance is None
    assert summary.overall.acceptance == summary.domains[0].acceptance


def test_resampling_stays_within_domains() -> None:
    # Domains differ, documents of a domain do not: only draws across domains would give the interval a width.
    documents = [
        scores(d, f"{d}{i}", [level] * 5) for d, level in (("a", 0.1), ("b", 0.9)) for i in range(10)
    ]
    summary = summarize("q", documents).overall.kld_mean
    assert summary.low == pytest.approx(0.5)
    assert summary.high == pytest.approx(0.5)


def test_the_same_seed_gives_the_same_result_in_any_order_of_documents() -> None:
    rng = np.random.default_rng(2)
    documents = random_scores(rng, "en", 12) + random_scores(rng, "de", 12)
    first = summarize("q", documents, seed=3)
    turned = summarize("q", documents[::-1], seed=3)
    assert {d.domain: d for d in first.domains} == {d.domain: d for d in turned.domains}
    assert first == summarize("q", documents, seed=3)
    assert first.overall.kld_mean != summarize("q", documents, seed=4).overall.kld_mean


def test_intervals_of_a_domain_do_not_depend_on_other_domains() -> None:
    rng = np.random.default_rng(3)
    english, german = random_scores(rng, "en", 12), random_scores(rng, "de", 12)
    assert summarize("q", english + german).domains[0] == summarize("q", english).domains[0]


def test_few_documents_and_few_tokens_are_said() -> None:
    rng = np.random.default_rng(4)
    few = summarize("q", random_scores(rng, "en", 9) + random_scores(rng, "de", 10))
    assert any("fewer than 10 documents" in w for w in few.domains[0].warnings)
    assert not any("documents" in w for w in few.domains[1].warnings)
    assert any("99.9th percentile" in w for w in few.domains[1].warnings)
    assert any("en" in w for w in few.overall.warnings)
    enough = summarize("q", [scores("en", f"{i}", rng.random(600).tolist()) for i in range(10)])
    assert enough.domains[0].warnings == ()


def test_one_document_has_figures_and_no_interval() -> None:
    summary = summarize("q", [scores("en", "a", [0.1, 0.2])]).overall
    assert summary.kld_mean == Estimate(pytest.approx(0.15), None, None)


@pytest.mark.parametrize("name", ["kld", "nll", "nll_ref"])
def test_values_that_are_no_numbers_are_refused_by_document(name: str) -> None:
    broken = scores("en", "abcdef", [0.1, 0.2])
    broken = replace(broken, **{name: np.array([0.1, np.nan], dtype=np.float32)})
    with pytest.raises(ScoresError, match=rf"abcdef.*'en'.*1 of 2 values of {name}"):
        summarize("q", [broken])


def test_a_document_twice_is_refused() -> None:
    with pytest.raises(ScoresError, match="same document twice"):
        summarize("q", [scores("en", "a", [0.1]), scores("en", "a", [0.1])])


def test_arrays_of_different_lengths_are_refused() -> None:
    with pytest.raises(ScoresError, match="2 KLD, 1 top-1"):
        summarize("q", [scores("en", "a", [0.1, 0.2], top1=[True])])


def test_a_broken_checkpoint_has_a_finite_perplexity() -> None:
    summary = summarize("q", [scores("en", str(i), [800.0], nll=[800.0]) for i in range(3)]).overall
    assert math.isfinite(summary.perplexity.value)
