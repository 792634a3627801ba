"""Intervals, ratios, verdicts, and what is not comparable."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from gptq_hybrid.common.errors import HybridError
from gptq_hybrid.live import Counters, Reading
from gptq_hybrid.receipt import fiction
from gptq_hybrid.receipt.compare import NotComparableError, compare_receipts, verdict, worst
from gptq_hybrid.receipt.plan import Plan, parse_contexts
from gptq_hybrid.receipt.record import Receipt, read_receipt
from gptq_hybrid.receipt.summary import Estimate, acceptance_length, median, ratio

from .made import SERVER, receipt, repeat


def rules(warnings: Any) -> list[str]:
    return [warning["rule"] for warning in warnings]


def test_an_interval_covers_the_truth_about_as_often_as_it_says() -> None:
    rng = np.random.default_rng(1)
    covered = 0
    for _ in range(200):
        made = [repeat(list(rng.normal(10, 1, 24))) for _ in range(3)]
        found = median(made, lambda r: r.tpot_ms)
        assert found is not None
        assert found.low is not None
        assert found.high is not None
        covered += found.low <= 10 <= found.high
    assert covered >= 180


def test_a_single_value_has_no_interval_and_none_is_none() -> None:
    assert median([repeat([5.0])], lambda r: r.tpot_ms) == Estimate(5.0, None, None)
    assert median([repeat([None, None])], lambda r: r.tpot_ms) is None
    assert acceptance_length([repeat([5.0], accepted=())]) is not None


def test_a_ratio_pairs_requests_so_that_prompts_cancel_out() -> None:
    # Prompts differ by a factor of ten, and the second receipt is 10 % slower on each.
    a = np.log(np.array([[1.0, 3.0, 10.0]] * 3))
    found = ratio([(a, a + np.log(1.1))])
    assert found is not None
    assert found.value == pytest.approx(1.1)
    assert found.low == pytest.approx(1.1)
    assert found.high == pytest.approx(1.1)


def test_requests_without_a_figure_in_one_receipt_are_left_out_of_the_ratio() -> None:
    a = np.log(np.array([[1.0, np.nan], [1.0, np.nan]]))
    b = np.log(np.array([[2.0, 9.0], [2.0, np.nan]]))
    found = ratio([(a, b)])
    assert found is not None
    assert found.value == pytest.approx(2.0)
    assert ratio([(a[:, 1:], b[:, 1:])]) is None


@pytest.mark.parametrize(
    ("low", "high", "said"),
    [
        (0.98, 1.03, "equal"),
        (1.02, 1.04, "equal"),  # not the same, and yet within what was asked
        (1.02, 1.2, "different"),
        (0.7, 0.9, "different"),
        (0.9, 1.1, "undecided"),
        (1.005, 1.2, "undecided"),  # two starts of one server differ by as much
    ],
)
def test_verdicts(low: float, high: float, said: str) -> None:
    assert verdict(Estimate((low + high) / 2, low, high), 0.05) == said


def test_one_difference_outweighs_all_that_is_equal() -> None:
    assert worst(["equal", "undecided", "different"]) == "different"
    assert worst(["equal", "undecided"]) == "undecided"
    assert worst([]) == "equal"


def test_twice_as_slow_is_a_ratio_of_two_at_every_batch() -> None:
    comparison = compare_receipts(receipt(), receipt(2.0))
    assert [row.batch for row in comparison.rows] == [1, 4]
    for row in comparison.rows:
        assert row.ratios["tpot_ms"].value == pytest.approx(2.0)
        assert row.ratios["acceptance_length"].value == pytest.approx(1.0)
    assert comparison.differs == ()


def test_what_is_compared_may_differ_and_is_named() -> None:
    other = receipt(
        machine={"gpus": [{"name": "Another card"}], "cpu": "a CPU"},
        server={**SERVER, "vllm": "0.33.0", "arguments": ["made", "--kv-cache-dtype", "fp8"]},
    )
    differs = compare_receipts(receipt(), other).differs
    assert "machine: A card → Another card" in differs
    assert "vllm: 0.32.0 → 0.33.0" in differs
    assert "flags: --max-num-seqs 16 → --kv-cache-dtype fp8" in differs


@pytest.mark.parametrize(
    ("changes", "why"),
    [
        ({"complete": False}, "the second is not complete"),
        ({"plan": Plan(("chat", "code"), 2, "other", ("short",), (1, 4), 32, 3)}, "prompts: made and other"),
        ({"plan": Plan(("chat", "code"), 2, "made", ("short",), (1, 4), 64, 3)}, "most tokens of an answer"),
        ({"server": {**SERVER, "rejection": "synthetic"}}, "accepts drafts at a given rate"),
        ({"subject": {"name": "x", "digest": None, "tokenizer_sha256": "ef"}}, "their tokenizers differ"),
        ({"warnings": [{"rule": "prefix-hits", "message": "9 % came from the cache"}]}, "9 % came from"),
        ({"cells": {}}, "no context and batch is in both"),
    ],
)
def test_what_is_not_comparable_is_refused_with_its_reason(changes: dict[str, Any], why: str) -> None:
    with pytest.raises(NotComparableError, match=why):
        compare_receipts(receipt(), receipt(**changes))


def test_a_cell_that_only_one_has_is_named_and_left_out() -> None:
    other = receipt()
    other.cells = {cell: measured for cell, measured in other.cells.items() if cell.batch == 1}
    comparison = compare_receipts(receipt(), other)
    assert [row.batch for row in comparison.rows] == [1]
    assert comparison.left_out == ("all, short context, batch 4",)


def test_a_receipt_is_read_back_as_it_was_written(tmp_path: Path) -> None:
    made = receipt()
    made.write(tmp_path / "receipt.json")
    assert read_receipt(tmp_path).as_json() == made.as_json()


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ("[]", "is no receipt of qwen36"),
        ('{"kind": "qwen36 receipt", "format": 2}', "Update vllm-qwen36-plugin"),
        ('{"kind": "qwen36 receipt", "format": 1, "cells": [{}]}', "is damaged"),
        ("{", "is not valid JSON"),
    ],
)
def test_what_is_no_receipt_is_one_error(tmp_path: Path, content: str, said: str) -> None:
    (tmp_path / "receipt.json").write_text(content)
    with pytest.raises(HybridError) as raised:
        read_receipt(tmp_path / "receipt.json")
    assert said in str(raised.value)


def fictions(plan: Plan | None = None, **server: Any) -> list[str]:
    made = receipt(server={**SERVER, "prefix_caching": True, **server})
    made.plan = plan or made.plan
    return rules(fiction.before(made, Reading("http://x")))


def test_random_prompts_are_fiction_only_where_drafts_are_accepted_by_accident() -> None:
    random = Plan((), 0, "random tokens", (), (1,), 32, 3, random_tokens=64)
    assert fictions(random) == ["random-prompts-with-drafts"]
    assert fictions(random, speculates=False) == []
    assert fictions(random, rejection="synthetic") == ["synthetic-acceptance"]
    assert fictions() == []


def test_more_requests_than_the_server_runs_at_once_are_said_to_queue() -> None:
    assert fictions(max_num_seqs=2) == ["queueing"]


def test_prefix_hits_other_requests_and_a_dead_head_are_found_afterwards() -> None:
    made = receipt()
    cell, measured = next(iter(made.cells.items()))
    counters = Counters(cache_queries=1000, cache_hits=200, requests=9, preemptions=1)
    broken = [repeat([5.0, 6.0])]
    object.__setattr__(broken[0], "counters", counters)
    measured.repeats = broken
    dead = Reading("http://x", speculates=True, counters=Counters(drafts=100, proposed=200))
    found = rules(fiction.after(made, dead))
    assert {"prefix-hits", "other-requests", "preemptions", "dead-head"} <= set(found)
    assert cell.cache == "cold"


def test_contexts_are_short_first_then_tokens_in_order() -> None:
    assert parse_contexts("8192,short,512") == ("short", "512", "8192")


def test_reading_and_comparing_needs_neither_torch_nor_vllm(tmp_path: Path) -> None:
    import subprocess
    import sys

    receipt().write(tmp_path / "a.json")
    code = (
        "import sys\n"
        "from gptq_hybrid.receipt.compare import compare_receipts\n"
        "from gptq_hybrid.receipt.record import read_receipt\n"
        "from gptq_hybrid.receipt.markdown import speed_section\n"
        "from pathlib import Path\n"
        "a = read_receipt(Path(sys.argv[1]))\n"
        "compare_receipts(a, a); speed_section(a)\n"
        "print([m for m in ('torch', 'vllm', 'scipy', 'transformers') if m in sys.modules])\n"
    )
    run = subprocess.run(
        [sys.executable, "-c", code, str(tmp_path / "a.json")], capture_output=True, text=True, check=True
    )
    assert run.stdout.strip() == "[]"


def test_a_picture_is_drawn_of_every_cell(tmp_path: Path) -> None:
    from gptq_hybrid.receipt.picture import plot

    plot(receipt(), tmp_path / "receipt.png")
    assert (tmp_path / "receipt.png").read_bytes()[:4] == b"\x89PNG"


def test_what_the_driver_does_not_say_is_left_out() -> None:
    from gptq_hybrid.receipt.gpu import Watch, parse

    line = "18000, 2520, 10501, 2520, [N/A], 450.00, 61"
    assert parse(line) == {
        "memory_mib": 18000.0,
        "sm_mhz": 2520.0,
        "memory_mhz": 10501.0,
        "most_sm_mhz": 2520.0,
        "power_limit_w": 450.0,
        "temperature_c": 61.0,
    }
    watch = Watch()
    watch.looks = [[{"memory_mib": 1.0, "sm_mhz": 1000.0}], [{"memory_mib": 3.0, "sm_mhz": 2000.0}]]
    assert watch.result() == ({"memory_mib": 3.0, "sm_mhz": 1500.0},)


def test_the_file_holds_what_the_schema_says(tmp_path: Path) -> None:
    import jsonschema

    schema = json.loads((Path(__file__).parents[2] / "gptq_hybrid" / "cli" / "schema.json").read_text())
    made: Receipt = receipt()
    content = {"path": "x", "written": [], **made.as_json()}
    jsonschema.validate(content, {**schema["$defs"]["receipt"], "$defs": schema["$defs"]})


def test_a_machine_is_described_without_its_paths(monkeypatch: pytest.MonkeyPatch) -> None:
    import json
    import subprocess
    from types import SimpleNamespace

    from gptq_hybrid.receipt import target

    found = {
        "system": {"CPU": "a CPU", "system": "Linux", "Python": "3.12.3 (/home/me/bin/python)"},
        "gpus": [],
        "versions": {"vllm": "0.33.0"},
        "variables": {"TRITON_CACHE_DIR": "/home/me/cache", "CUDA_VISIBLE_DEVICES": "1"},
        "plugin": {"features": []},
    }
    answer = SimpleNamespace(stdout=json.dumps({"result": found}))
    monkeypatch.setattr(subprocess, "run", lambda *_, **__: answer)
    described = target.describe_machine()
    assert described["variables"] == {"TRITON_CACHE_DIR": "set", "CUDA_VISIBLE_DEVICES": "1"}
    assert "/home" not in json.dumps(described)
