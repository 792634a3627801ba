"""Weighted quantiles against numpy's, and intervals that contain the truth as often as they say."""

from __future__ import annotations

import sys

import numpy as np
import pytest

from gptq_hybrid.common.errors import HybridError
from gptq_hybrid.evaluate import summarize
from gptq_hybrid.evaluate.bootstrap import (
    RankedTokens,
    build_draws,
    degrees_of_freedom,
    interval,
    ratio,
    resample,
)
from tests.evaluate.made import random_scores


@pytest.mark.parametrize("most_runs", [2, 2048])
@pytest.mark.parametrize("lengths", [(1,), (3, 5), (127, 1), (128, 128), (300, 40, 900, 1)])
def test_weighted_quantiles_are_those_of_repeated_documents(lengths: tuple[int, ...], most_runs: int) -> None:
    rng = np.random.default_rng(sum(lengths))
    # Rounded, so that many tokens tie.
    values = [rng.exponential(1, n).round(1).astype(np.float32) for n in lengths]
    weights = rng.integers(0, 4, (20, len(lengths))).astype(float)
    weights[weights.sum(axis=1) == 0] = 1
    levels = (0.5, 0.9, 0.99, 0.999)
    quantiles = RankedTokens.of(values, most_runs=most_runs).quantiles(weights, levels)
    for row, multiplicities in enumerate(weights):
        repeated = np.concatenate([np.tile(v, int(m)) for v, m in zip(values, multiplicities, strict=True)])
        for level, rows in zip(levels, quantiles, strict=True):
            assert rows[row] == np.quantile(repeated, level, method="inverted_cdf")


def test_weights_need_not_be_whole() -> None:
    ranked = RankedTokens.of([np.array([1, 2], dtype=np.float32), np.array([3], dtype=np.float32)])
    (median,) = ranked.quantiles(np.array([[0.1, 0.1], [0.1, 0.3], [0.0, 0.0]]), [0.5])
    assert median[:2].tolist() == [2.0, 3.0]
    assert np.isnan(median[2])


def test_one_document_less_than_the_sample_is_drawn() -> None:
    rows = resample("en", 10, 500, 0)
    assert (rows.sum(axis=1) == 9).all()
    assert rows.var(axis=0).mean() == pytest.approx(9 * 0.1 * 0.9, rel=0.1)
    assert (resample("de", 10, 500, 0) != rows).any()


def test_the_variance_of_a_resampled_mean_is_unbiased() -> None:
    values = np.random.default_rng(5).normal(size=8)
    draws = build_draws([resample("en", 8, 40_000, 0)])
    means = (draws.weights[9:] @ values) / 7
    assert means.var() == pytest.approx(values.var(ddof=1) / 8, rel=0.03)


def test_degrees_of_freedom_follow_the_domain_that_varies() -> None:
    rng = np.random.default_rng(6)
    equal = rng.normal(size=2000)
    assert degrees_of_freedom(equal, [1000, 1000]) == pytest.approx(1998, rel=0.05)
    one = np.concatenate([rng.normal(size=10), np.zeros(1000)])
    assert degrees_of_freedom(one, [10, 1000]) == pytest.approx(9)


def test_intervals_cover_the_truth_about_as_often_as_they_say() -> None:
    # The whole study is bench/quality/coverage.json. Here: the mean of log-normal documents of unequal length, of
    # which 12 are few: over 3,000 samples 91.5 % of the intervals contain it, 87 % of plain percentile intervals.
    rng, inside, plain, repeat = np.random.default_rng(7), 0, 0, 500
    for _ in range(repeat):
        tokens = rng.integers(50, 500, 12).astype(float)
        sums = tokens * np.exp(rng.normal(-0.125, 0.5, 12))  # mean 1
        draws = build_draws([rng.multinomial(11, np.full(12, 1 / 12), 400).astype(float)])
        rows = ratio(draws.weights @ sums, draws.weights @ tokens)
        estimate = interval(rows, draws)
        assert estimate.low is not None
        assert estimate.high is not None
        inside += estimate.low <= 1 <= estimate.high
        drawn = rng.multinomial(12, np.full(12, 1 / 12), 400).astype(float)
        low, high = np.quantile(ratio(drawn @ sums, drawn @ tokens), [0.025, 0.975])
        plain += low <= 1 <= high
    assert 0.915 - 0.04 <= inside / repeat <= 0.98  # three standard errors of 500 samples
    assert inside > plain + 0.01 * repeat


def test_without_scipy_the_error_names_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "scipy.special", None)
    with pytest.raises(HybridError) as caught:
        summarize("q", random_scores(np.random.default_rng(0), "en", 10))
    assert "vllm-qwen36-plugin[eval]" in str(caught.value.remedy)
