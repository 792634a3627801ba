"""What the scripts about drafts conclude from counts and along replies; no engine here."""

from __future__ import annotations

import random
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("scipy")

from bench.drafts import report
from bench.drafts.acceptance import digest, homogeneity, options, summary


def draws(weights: list[float], count: int, seed: int) -> list[int]:
    return random.Random(seed).choices(range(len(weights)), weights, k=count)


def test_draws_from_one_distribution_are_not_told_apart() -> None:
    weights = [1 / (i + 1) for i in range(60)]
    below = 0
    for seed in range(200):
        one = {name: draws(weights, 600, 1000 * seed + i) for i, name in enumerate("ab")}
        other = {name: draws(weights, 900, 1000 * seed + 500 + i) for i, name in enumerate("ab")}
        below += homogeneity(one, other).p < 0.05
    # 200 × 0.05 = 10, standard deviation 3.1.
    assert 1 <= below <= 22


def test_a_token_that_never_comes_is_found() -> None:
    weights = [0.5, 0.3, 0.1, 0.07, 0.03]
    one = {"a": draws(weights, 4000, 1)}
    other = {"a": draws([*weights[:4], 0.0], 4000, 2)}
    assert homogeneity(one, other).p < 1e-6


def test_rare_outcomes_are_put_together() -> None:
    one = {"a": ["x"] * 50 + [f"one {i}" for i in range(50)]}
    other = {"a": ["x"] * 50 + [f"other {i}" for i in range(50)]}
    found = homogeneity(one, other)
    assert (found.freedom, found.statistic) == (1, 0.0)


def test_counts_are_as_good_as_draws() -> None:
    one, other = draws([0.5, 0.3, 0.2], 300, 1), draws([0.5, 0.3, 0.2], 300, 2)
    assert homogeneity({"a": Counter(one)}, {"a": Counter(other)}) == homogeneity({"a": one}, {"a": other})


def test_a_summary_has_the_test_of_the_draws_in_place_of_their_counts() -> None:
    none = served([[1, 2]]) | {"sampled": {"en": {"1 2": 60, "3 4": 40}}}
    ours = served([[1, 2]], 10, [8, 5]) | {"sampled": {"en": {"1 2": 40, "3 4": 60}}}
    kept = summary({"runs": {"none": none, "w8": ours, "w4": served([[1]])}})["runs"]
    # 4 × 10² / 50 over one degree of freedom.
    assert kept["w8"]["sampled"] == pytest.approx(
        {"statistic": 8.0, "freedom": 1, "p": 0.00468, "draws": 100}, rel=1e-3
    )
    assert kept["none"]["sampled"] == kept["w4"]["sampled"] == {}
    assert kept["w8"]["greedy"] == ours["greedy"]


def test_nothing_to_compare_is_an_error() -> None:
    with pytest.raises(ValueError, match="other prompts"):
        homogeneity({"a": [1]}, {"b": [1]})
    with pytest.raises(ValueError, match="one outcome alone"):
        homogeneity({"a": [1] * 20}, {"a": [1] * 20})


def served(tokens: list[list[int]], steps: int = 0, accepted: list[int] | None = None) -> dict[str, Any]:
    domain: dict[str, Any] = {"replies": [digest(ids) for ids in tokens]}
    if accepted is not None:
        domain |= {"steps": steps, "accepted": accepted}
    return {"environment": {"device": "CPU", "vllm": "1"}, "greedy": {"en": domain}, "sampled": {}}


def test_acceptance_is_over_all_steps() -> None:
    run = served([[1, 2]], 10, [8, 5])
    run["greedy"]["de"] = {"replies": [digest([1])], "steps": 30, "accepted": [12, 3]}
    assert report.tokens_a_step(run) == pytest.approx(1 + 28 / 40)
    assert report.by_position(run) == pytest.approx([0.5, 0.2])


def test_only_tokens_that_stock_drafts_keep_count_against_others() -> None:
    none = served([[1, 2], [3, 4], [5, 6]])
    stock = served([[1, 2], [3, 9], [5, 6]], 10, [8, 5])
    ours = served([[1, 2], [3, 9], [5, 7]], 10, [8, 4])
    assert report.same_replies(none, ours) == (1, 3)
    assert report.lost(ours, stock, none) == 1


@pytest.mark.parametrize(
    ("way", "wanted"),
    [
        ("none", {"draft": "bf16", "draft_vocab": 0}),
        ("w4", {"draft": "w4", "draft_vocab": 0}),
        ("fp8:4096", {"draft": "fp8", "draft_vocab": 4096}),
        ("w8:7000:v2", {"draft": "w8", "draft_vocab": 7000}),
        ("w8:v2", {"draft": "w8", "draft_vocab": 0}),
        ("auto+verify", {"draft": "auto", "draft_vocab": 0, "verify": "copy"}),
        ("w8:9:mine", {"draft": "w8", "draft_vocab": 9, "draft_vocab_file": "MINI/mine.json"}),
    ],
)
def test_a_way_says_form_and_vocabulary(way: str, wanted: dict[str, Any]) -> None:
    assert options(way, Path("MINI")) == wanted


def test_bytes_of_a_draft_are_those_of_the_27b() -> None:
    stock = report.bytes_of_a_draft("stock")
    # FACTS of the checkpoint: 0.85 GB and 2.54 GB.
    assert stock == report.bytes_of_a_draft("bf16")
    assert stock["linears"] == pytest.approx(0.849e9, rel=1e-3)
    assert stock["head"] == pytest.approx(2.543e9, rel=1e-3)
    auto = report.bytes_of_a_draft("auto")
    assert auto["head"] == report.bytes_of_a_draft("w4")["head"]
    assert report.bytes_of_a_draft("stock:fp8")["head"] == stock["head"] // 2
    assert auto["linears"] == report.bytes_of_a_draft("w8")["linears"]
    few = report.bytes_of_a_draft("w4:65536")
    assert few["head"] == pytest.approx(stock["head"] * 65536 / 248320 * 4.5 / 16, rel=1e-6)
    # 424.7 M weights in 4.5 bits, and 3.625 more for each of fc's.
    assert few["linears"] == pytest.approx(stock["linears"] * 4.5 / 16 + 5120 * 10240 * 3.625 / 8, rel=1e-6)


def timed(ms: float) -> dict[str, Any]:
    steps = {
        batch: {"ms": [ms + 1, ms + 1.2], "steps": 128, "gpu_ms": ms, "kernels": {}} for batch in ("1", "16")
    }
    return {"environment": {"device": "H100", "vllm": "1"}, "bandwidth": 3e12, "steps": steps}


def result(**runs: float) -> dict[str, Any]:
    names = {"w4few": "w4:32768", "auto3": "auto@3", "fp8": "humming:fp8"}
    return {
        "settings": {"layers": 16, "drafts": 2},
        "runs": {names.get(name, name): timed(ms) for name, ms in runs.items()},
    }


def cells(table: str, way: str) -> list[str]:
    row = next(line for line in table.splitlines() if line.startswith(f"| {way} "))
    return [cell.strip() for cell in row.split("|")[2:-1]]


def test_a_step_is_held_against_stocks_on_the_clock_and_by_kernels() -> None:
    found = result(none=4.0, stock=7.0, auto3=5.5)
    assert cells(report.step_table(found), "auto@3")[:4] == ["6.60", "0.815", "5.50", "0.786"]


def test_tokens_a_second_are_held_against_stock_and_its_best_flag() -> None:
    found = result(none=4.0, stock=7.0, fp8=6.0, auto3=5.5)
    for way, tokens in {"none": 50, "stock": 100, "humming:fp8": 110, "auto@3": 132}.items():
        found["runs"][way]["served"] = {"1 x 2048": {"step_ms": 9.0, "tokens_a_second": tokens}}
    assert cells(report.served_table(found), "auto@3") == ["132", "1.32", "1.20"]


def test_what_drafts_take_is_a_step_less_one_without() -> None:
    found = result(none=4.0, stock=7.0, w4few=5.5)
    assert report.drafts_ms(found, "w4:32768", "1") == pytest.approx(1.5)
    assert report.drafts_ms(found, "none", "1") is None
    # 6.78 GB at 3 TB/s.
    assert cells(report.bytes_table(found), "stock")[2:] == ["6.78", "2.261", "3.000"]


@pytest.mark.parametrize(("way", "wanted"), [("none", 0), ("stock", 2), ("w8:65536@3", 3)])
def test_a_variant_says_how_many_drafts_a_step_has(way: str, wanted: int) -> None:
    assert report.drafts_of(way) == (way.partition("@")[0], wanted)
