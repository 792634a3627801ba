"""Two checkpoints on the same documents: pairing, the sign-flip test, Holm's correction, verdicts."""

from __future__ import annotations

import itertools
from dataclasses import replace

import numpy as np
import pytest

from gptq_hybrid.evaluate import DomainComparison, ScoresError, compare
from gptq_hybrid.evaluate.compare import ALPHA, FLIPS, Difference, holm, sign_flip
from tests.evaluate.made import random_scores, scores, shifted


def by_measure(comparison: DomainComparison) -> dict[str, Difference]:
    return {d.measure: d for d in comparison.differences}


def test_a_checkpoint_does_not_differ_from_itself() -> None:
    documents = random_scores(np.random.default_rng(0), "en", 20)
    for measure in by_measure(compare(("a", "b"), documents, documents).overall).values():
        assert (measure.difference.value, measure.difference.low, measure.difference.high) == (0, 0, 0)
        assert (measure.p, measure.verdict) == (1.0, "no difference shown")


def test_differences_are_those_of_the_summaries() -> None:
    a = [scores("en", "x", [0.1, 0.3], nll=[1.5, 1.5], drafts=[[True, True]] * 2), scores("en", "y", [0.4])]
    b = [
        scores("en", "x", [0.2, 0.5], top1=[True, False], drafts=[[True, False], [False, True]]),
        scores("en", "y", [0.1]),
    ]
    differences = {m: d.difference.value for m, d in by_measure(compare(("a", "b"), a, b).overall).items()}
    assert differences == pytest.approx(
        {"kld_mean": 0.0, "top1": 1 / 3, "log_perplexity": 1 / 3, "acceptance_length": 2.0 - 0.5},
        abs=1e-6,  # float32
    )


def test_verdicts_say_which_is_better_whatever_the_sign_means() -> None:
    rng = np.random.default_rng(1)
    good = random_scores(rng, "en", 30)
    bad = [
        replace(d, kld=d.kld * np.float32(2), top1=d.top1 & (rng.random(len(d.top1)) < 0.8), nll=d.nll + 0.1)
        for d in good
    ]
    forward, backward = (
        by_measure(compare(("a", "b"), *pair).overall) for pair in ((good, bad), (bad, good))
    )
    for measure in ("kld_mean", "top1", "log_perplexity"):
        assert forward[measure].verdict == "better"
        assert backward[measure].verdict == "worse"
        assert backward[measure].difference.value == pytest.approx(-forward[measure].difference.value)
    assert forward["acceptance_length"].verdict == "no difference shown"


def test_documents_are_paired_by_key_and_not_by_order() -> None:
    documents = random_scores(np.random.default_rng(2), "en", 15)
    worse = shifted(documents, 1.5)
    assert compare(("a", "b"), documents, worse[::-1]) == compare(("a", "b"), documents, worse)


def test_other_documents_are_refused_with_what_is_missing() -> None:
    documents = random_scores(np.random.default_rng(3), "en", 5) + random_scores(
        np.random.default_rng(3), "de", 5
    )
    with pytest.raises(
        ScoresError, match=r"different documents: in domain 'de' A lacks 0 and B lacks 2 of 5"
    ):
        compare(("A", "B"), documents, documents[:-2])
    with pytest.raises(ScoresError, match=r"domain 'fr' A lacks 1"):
        compare(("A", "B"), documents, [*documents, scores("fr", "z", [0.1])])


def test_documents_cut_differently_are_refused() -> None:
    with pytest.raises(ScoresError, match="different tokens"):
        compare(("A", "B"), [scores("en", "x", [0.1, 0.2])], [scores("en", "x", [0.1])])


def test_acceptance_is_compared_only_where_both_have_a_head() -> None:
    documents = random_scores(np.random.default_rng(4), "en", 10)
    without = [replace(d, drafts=np.zeros((0, 2), dtype=bool)) for d in documents]
    assert "acceptance_length" not in by_measure(compare(("a", "b"), documents, without).overall)


def test_over_all_domains_weigh_alike_in_a_difference() -> None:
    a = [scores("big", str(i), [0.1] * 40) for i in range(9)] + [scores("small", "x", [0.5])]
    b = [scores("big", str(i), [0.2] * 40) for i in range(9)] + [scores("small", "x", [0.1])]
    mean_kld = by_measure(compare(("a", "b"), a, b).overall)["kld_mean"]
    assert mean_kld.difference.value == pytest.approx((-0.1 + 0.4) / 2)


def test_few_documents_are_tested_with_all_signs() -> None:
    values = np.random.default_rng(5).normal(0.5, 1, (7, 1))
    sums = [abs(np.dot(signs, values[:, 0])) for signs in itertools.product((1, -1), repeat=7)]
    expected = np.mean([s >= abs(values.sum()) - 1e-9 for s in sums])
    assert sign_flip(values, np.random.default_rng(0))[0] == expected


def test_many_documents_are_tested_with_random_signs_close_to_the_exact_value() -> None:
    values = np.random.default_rng(6).normal(0.45, 1, (16, 1))
    signs = 1.0 - 2.0 * ((np.arange(2**15)[:, None] >> np.arange(16)) & 1)
    exact = (np.abs(signs @ values) >= np.abs(values.sum()) - 1e-9).mean()
    assert 0.01 < exact < 0.5
    assert sign_flip(values, np.random.default_rng(0))[0] == pytest.approx(
        exact, abs=4 * (0.25 / FLIPS) ** 0.5
    )


def test_no_p_value_of_random_signs_is_zero() -> None:
    assert sign_flip(np.ones((60, 1)), np.random.default_rng(0))[0] == 1 / (1 + FLIPS)


def test_the_test_keeps_its_level_and_finds_what_is_there() -> None:
    # Numbers for more cases: bench/quality/power.json.
    rng, repeat = np.random.default_rng(7), 400

    def rejected(factor: float, n: int) -> float:
        p = [
            sign_flip(
                (rng.lognormal(0, 0.5, n) * (rng.lognormal(0, 0.3, n) - factor * rng.lognormal(0, 0.3, n)))[
                    :, None
                ],
                rng,
            )[0]
            for _ in range(repeat)
        ]
        return float(np.mean(np.array(p) <= ALPHA))

    assert rejected(1.0, 12) <= 0.05 + 3 * (0.05 * 0.95 / repeat) ** 0.5
    assert rejected(1.0, 20) <= 0.05 + 3 * (0.05 * 0.95 / repeat) ** 0.5
    assert rejected(1.4, 20) > 0.7


def test_holm_steps_down_and_leaves_gaps_alone() -> None:
    assert holm([0.01, 0.04, 0.03]) == pytest.approx([0.03, 0.06, 0.06])
    corrected = holm([0.02, float("nan"), 0.5])
    assert corrected[0] == pytest.approx(0.04)
    assert np.isnan(corrected[1])
    assert holm([0.9, 0.8]) == [1.0, 1.0]


def test_domains_are_corrected_and_over_all_is_not() -> None:
    rng = np.random.default_rng(8)
    documents = [d for name in ("a", "b", "c") for d in random_scores(rng, name, 10)]
    noisy = [replace(d, kld=(d.kld * rng.lognormal(0.1, 0.3)).astype(np.float32)) for d in documents]
    comparison = compare(("x", "y"), documents, noisy)
    raw = [by_measure(d)["kld_mean"].p for d in comparison.domains]
    assert [by_measure(d)["kld_mean"].p_holm for d in comparison.domains] == pytest.approx(holm(raw))
    over = by_measure(comparison.overall)["kld_mean"]
    assert over.p == over.p_holm


def test_too_few_documents_to_show_anything_are_said() -> None:
    five = random_scores(np.random.default_rng(9), "en", 5)
    comparison = compare(("a", "b"), five, shifted(five, 3.0))
    assert by_measure(comparison.domains[0])["kld_mean"].p == 2 / 2**5
    assert any("too few" in w for w in comparison.domains[0].warnings)
    six = random_scores(np.random.default_rng(9), "en", 6)
    assert compare(("a", "b"), six, six).domains[0].warnings == ()
