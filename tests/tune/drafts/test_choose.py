"""``qwen36 tune drafts``: which count of drafts is recommended."""

from __future__ import annotations

import json

import pytest

from tests.tune.drafts.made import all_cells, grid
from vllm_qwen36_plugin.tune.drafts.choose import LEAST_NOISE, best, choose, gain, recommend
from vllm_qwen36_plugin.tune.drafts.grid import Grid


def test_the_fastest_wins_where_repeats_agree() -> None:
    assert best({0: [10, 10.1, 9.9], 1: [8, 8.1, 7.9], 2: [7, 7.1, 6.9], 3: [7.5, 7.6, 7.4]}) == 2


def test_fewer_drafts_win_where_repeats_do_not_tell() -> None:
    assert best({0: [10, 10, 10], 1: [8.0, 8.4, 7.6], 2: [7.9, 7.5, 8.3]}) == 1
    # A difference in every repeat, but under one percent.
    assert best({0: [10, 10, 10], 1: [8, 8, 8], 2: [7.95, 7.95, 7.95]}) == 1


def test_none_is_a_legal_answer() -> None:
    choice = choose({0: [10, 10, 10], 1: [11, 11.2, 11.1], 2: [9.95, 10.4, 9.6]})
    assert (choice.count, choice.fastest, choice.against) == (0, 2, 0)


def test_more_drafts_than_the_fastest_are_never_taken() -> None:
    assert best({1: [8, 8, 8], 3: [8, 8, 8], 4: [8.001, 8.001, 8.001]}) == 1


def test_noise_is_what_repeats_differ_by_pairwise() -> None:
    # All three of a count share a slow prompt set: in pairs nothing differs.
    steady = gain([10, 20, 30], [9, 18, 27])
    assert steady.value == pytest.approx(0.1)
    assert steady.noise == LEAST_NOISE
    shaky = gain([10, 10, 10], [9, 9.7, 8.5])
    assert shaky.noise == pytest.approx(0.07)
    assert shaky.real
    assert not gain([10, 10, 10], [9, 10.2, 8.5]).real


# By (drafts, batch): drafts help one request and hurt four.
MIXED = {
    (0, 1): [10.0, 10.1, 9.9],
    (1, 1): [7.0, 7.1, 6.9],
    (2, 1): [5.0, 5.1, 4.9],
    (0, 4): [12.0, 12.1, 11.9],
    (1, 4): [10.8, 10.9, 10.7],
    (2, 4): [20.0, 20.1, 19.9],
}


def test_one_count_for_all_and_one_for_each_part() -> None:
    measured = grid()
    recommendation = recommend(measured, all_cells(measured, MIXED))
    assert {part: each.count for part, each in recommendation.parts.items()} == {
        ("short", 1): 2,
        ("short", 4): 1,
        ("long", 1): 2,
        ("long", 4): 1,
    }
    # Geometric means over the parts: √(7 · 10.8) < √(5 · 20) < √(10 · 12).
    assert recommendation.overall.count == 1
    assert recommendation.overall.gain.value == pytest.approx(1 - (7 * 10.8 / 120) ** 0.5)
    assert recommendation.ratios["long", 4] == pytest.approx(0.9)


def test_a_slow_part_does_not_outweigh_a_fast_one() -> None:
    measured = grid(counts=(0, 1), contexts=("short",))
    times = {(0, 1): [1.0] * 3, (1, 1): [0.5] * 3, (0, 4): [100.0] * 3, (1, 4): [110.0] * 3}
    assert recommend(measured, all_cells(measured, times)).overall.count == 1


def as_json(measured: Grid) -> dict[str, object]:
    return recommend(measured, all_cells(measured, MIXED)).as_json()


def test_json_has_the_flag() -> None:
    content = as_json(grid())
    assert content["num_speculative_tokens"] == 1
    assert content["arguments"] == ["--speculative-config", '{"method": "mtp", "num_speculative_tokens": 1}']
    assert as_json(grid(counts=(0,)))["arguments"] == []


def test_drafts_by_batch_are_what_is_best_for_each_over_all_contexts() -> None:
    measured = grid(by_batch=True)
    found = recommend(measured, all_cells(measured, MIXED))
    assert found.schedule == [(1, 1, 2), (2, 4, 1)]
    config = json.loads(found.flags[1])
    assert config == {
        "method": "mtp",
        "num_speculative_tokens": 2,
        "num_speculative_tokens_per_batch_size": [[1, 1, 2], [2, 4, 1]],
    }
    lookup = pytest.importorskip("vllm.v1.spec_decode.dynamic.utils").build_dynamic_sd_schedule_lookup
    assert lookup(config["num_speculative_tokens_per_batch_size"], 6, 2) == [0, 2, 1, 1, 1, 1, 1]
    assert found.as_json()["by_batch"] == [[1, 1, 2], [2, 4, 1]]
    # Another vLLM takes one number alone; so does a workload for which one is best.
    assert recommend(grid(), all_cells(grid(), MIXED)).schedule == []
    alike = {key: [10.0 - key[0], 10.1 - key[0], 9.9 - key[0]] for key in MIXED}
    assert recommend(measured, all_cells(measured, alike)).schedule == []


def test_speculation_stops_where_it_loses() -> None:
    measured = grid(batches=(1, 4, 16), counts=(0, 2), by_batch=True)
    fast, slow = [5.0, 5.1, 4.9], [12.0, 12.1, 11.9]
    times = {(0, 1): slow, (2, 1): fast, (0, 4): slow, (2, 4): fast, (0, 16): fast, (2, 16): slow}
    assert recommend(measured, all_cells(measured, times)).schedule == [(1, 4, 2), (5, 16, 0)]
