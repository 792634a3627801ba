"""The order of tokens, and what is said of its first N."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from gptq_hybrid.checkpoint import DraftVocab
from gptq_hybrid.draft_vocab import expected_counts, rank, shares
from gptq_hybrid.draft_vocab._rank import held_out_shares

COUNTS = st.lists(st.integers(0, 5), min_size=4, max_size=40)


def vocab(ranked: list[int], size: int) -> DraftVocab:
    return DraftVocab("0" * 64, size, tuple(ranked), {}, {})


def test_more_frequent_goes_before_less_and_a_lower_id_before_an_equal_one() -> None:
    assert rank(np.array([2.0, 0.0, 5.0, 2.0, 0.0])) == [2, 0, 3]


def test_tokens_that_end_a_reply_go_before_all_counted_or_not() -> None:
    assert rank(np.array([2.0, 0.0, 5.0]), first=(1, 0, 1)) == [1, 0, 2]


@given(COUNTS, st.integers(1, 50))
def test_any_number_of_ids_can_be_cut_and_each_cut_begins_the_next(counts: list[int], n: int) -> None:
    ranked = vocab(rank(np.array(counts, dtype=float)), len(counts))
    ids = ranked.ids(n)
    assert len(ids) == len(set(ids)) == min(n, len(counts))
    assert ranked.ids(n + 1)[: len(ids)] == ids
    assert all(counts[a] >= counts[b] for a, b in pairwise(ids))
    unseen = [i for i in ids if not counts[i]]
    assert unseen == sorted(unseen)


@pytest.mark.parametrize("n", [0, -1])
def test_no_ids_at_all_are_not_given(n: int) -> None:
    with pytest.raises(ValueError, match="draft vocabulary"):
        vocab([1], 4).ids(n)


@given(COUNTS.filter(any), st.permutations(range(4)))
def test_a_share_is_what_the_first_ids_hold(counts: list[int], ranked: list[int]) -> None:
    ids = vocab(ranked, len(counts)).ids(len(counts))
    by_size = shares(ranked, np.array(counts, dtype=float), sizes=(1, 3, len(counts), len(counts) + 1))
    assert by_size == {
        n: pytest.approx(sum(counts[i] for i in ids[:n]) / sum(counts)) for n in {1, 3, len(counts)}
    }


def test_held_out_shares_rank_each_part_by_the_others_alone() -> None:
    # Part 0 holds token 3 only, which the other part never shows: its own count must not lift it.
    folds = np.array([[0.0, 0.0, 0.0, 10.0], [0.0, 6.0, 4.0, 0.0]])
    assert held_out_shares(folds, sizes=(1, 2, 4)) == {1: 0.0, 2: pytest.approx(0.0), 4: 1.0}
    both = np.array([[0.0, 6.0, 4.0, 0.0], [0.0, 6.0, 4.0, 0.0]])
    assert held_out_shares(both, sizes=(1, 2)) == {1: pytest.approx(0.6), 2: pytest.approx(1.0)}


def test_one_part_alone_has_nothing_held_out() -> None:
    assert held_out_shares(np.array([[0.0, 1.0], [0.0, 0.0]]), sizes=(1,)) == {}


def test_a_list_known_before_counts_as_a_text_in_its_order() -> None:
    counts = expected_counts([2, 0, 3], 5, 60.0)
    assert counts.sum() == pytest.approx(60.0)
    assert rank(counts) == [2, 0, 3]
    # A text of few tokens moves what it says often, and leaves the rest in the known order.
    assert rank(counts + np.array([0.0, 0.0, 0.0, 0.0, 30.0])) == [4, 2, 0, 3]


def test_what_is_known_before_helps_to_rank_what_the_other_parts_lack() -> None:
    folds = np.array([[0.0, 0.0, 0.0, 10.0], [0.0, 6.0, 4.0, 0.0]])
    prior = expected_counts([3, 1, 2], 4, 1000.0)
    alone, helped = held_out_shares(folds, sizes=(3,)), held_out_shares(folds, sizes=(3,), prior=prior)
    assert helped[3] == pytest.approx(1.0)
    assert alone[3] < helped[3]
