"""`bench/act_order/served`: how ways are held against float32 and each other, and what its table says."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("torch")

from bench.act_order.results import SERVED
from bench.act_order.served import BF16, WAYS, against, said_of
from bench.act_order.tables import quantization, served_table
from bench.results import load

END = 9


def answers(log_probabilities: list[list[float]], replies: list[list[int]]) -> dict[str, Any]:
    return {"log_probabilities": log_probabilities, "replies": replies}


EXACT = answers([[-1.0, -2.0], [-3.0, -4.0]], [[1, 2], [3, 4]])


def test_errors_are_over_all_tokens_of_all_prompts() -> None:
    found = against(EXACT, {"way": answers([[-1.0, -2.0], [-3.3, -3.6]], EXACT["replies"])}, {END})
    # (0.3² + 0.4²) / 4
    assert found["way"]["log_probability_error"] == pytest.approx({"rms": 0.25, "largest": 0.4}, rel=1e-5)


def test_a_prompt_that_stock_gets_wrong_is_in_no_error_and_one_that_others_do_is() -> None:
    runs = {
        "stock": answers([[-9.0, -9.0], [-3.1, -4.0]], EXACT["replies"]),
        "one": answers([[-8.0, -2.0], [-3.0, -4.2]], EXACT["replies"]),
        "other": answers([[-1.0, -2.0], [-3.0, -9.0]], EXACT["replies"]),
    }
    found = against(EXACT, runs, {END})
    assert {way: found[way]["prompts off"] for way in runs} == {"stock": [0], "one": [0], "other": [1]}
    largest = {way: found[way]["log_probability_error"]["largest"] for way in runs}
    assert largest == pytest.approx({"stock": 0.1, "one": 0.2, "other": 5.0}, rel=1e-5)


def test_replies_are_counted_against_float32_and_every_other_way() -> None:
    runs = {
        "one": answers(EXACT["log_probabilities"], [[1, 2], [3, 5]]),
        "other": answers(EXACT["log_probabilities"], [[1, 7], [3, 5]]),
    }
    found = against(EXACT, runs, {END})
    assert [found[way]["replies as float32"] for way in runs] == [1, 0]
    assert found["one"]["replies as other"] == found["other"]["replies as one"] == 1
    assert "replies as one" not in found["one"]


def test_what_a_server_says_behind_the_end_of_a_text_does_not_count() -> None:
    exact = answers(EXACT["log_probabilities"], [[1, END], [3, 4]])
    runs = {
        "goes on": answers(EXACT["log_probabilities"], [[1, END, 5], [3, 4]]),
        "ends later": answers(EXACT["log_probabilities"], [[1, 2, END], [3, 4]]),
    }
    found = against(exact, runs, {END})
    assert found["goes on"]["replies as float32"] == 2
    assert found["ends later"]["replies as float32"] == 1


@pytest.mark.parametrize("rows", [[[-1.0, -2.0]], [[-1.0], [-3.0, -4.0]]])
def test_answers_to_other_prompts_are_no_errors_but_refused(rows: list[list[float]]) -> None:
    with pytest.raises(ValueError, match="way was asked other prompts"):
        against(EXACT, {"way": answers(rows, EXACT["replies"])}, {END})


def served(log: str = "config: quantization=qwen36_gptq, quantization_config=None") -> dict[str, Any]:
    """Two ways and what is made of them."""
    ours = answers([[-1.0, -2.0], [-3.0, -4.2]], [[1, 2], [3, 5]])
    stock = answers(EXACT["log_probabilities"], [[1, 2], [3, 5]])
    said = {"environment": {"device": "a card", "vllm": "0.26.0"}, "acceptance_length": 2.5}
    return {
        "settings": {"new": 2},
        "runs": {
            "plugin": {**ours, **said, "log": ["active", log]},
            "stock": {**stock, **said, "log": ["quantization=auto_gptq"]},
        },
        "compared": {
            "prompts": 2,
            "prompt_tokens": 3,
            "ways": against(EXACT, {BF16: EXACT, "plugin": ours, "stock": stock}, {END}),
        },
    }


def test_a_row_says_who_served_and_how_near_it_came() -> None:
    lines = served_table(served()).splitlines()
    assert "| plugin | qwen36_gptq | 0.1000 | 0.200 | 0 | 1 | 2 | 2.500 |" in lines
    assert "| stock | auto_gptq | 0.0000 | 0.000 | 0 | 1 |  | 2.500 |" in lines
    assert f"| {BF16} |  | 0.0000 | 0.000 | 0 | 2 | 1 |  |" in lines
    assert lines[-1].startswith("a card, vllm 0.26.0; errors against float32, nats a token")
    assert "; 2 prompts of 3 tokens, greedy replies of 2" in lines[-1]


def test_what_is_kept_of_a_log_says_who_served_and_not_from_where() -> None:
    log = """\
(EngineCore pid=7) INFO 11-28 [core.py:1] model='/a/b', quantization=qwen36_gptq, tokenizer='/a/b'
(EngineCore pid=7) INFO 11-28 [core.py:2] /a/b was loaded
(APIServer pid=8) INFO 11-28 [front.py:3] vllm-qwen36-plugin active
"""
    assert said_of(log, Path("/a/b")) == [
        "model='CHECKPOINT', quantization=qwen36_gptq, tokenizer='CHECKPOINT'",
        "vllm-qwen36-plugin active",
    ]


def test_a_log_that_does_not_say_who_served_is_an_error() -> None:
    with pytest.raises(ValueError, match="no line of vLLM's log says quantization="):
        served_table(served(log="quantization_config=None"))


def test_runs_without_a_comparison_say_what_to_run() -> None:
    result = served()
    del result["compared"]
    with pytest.raises(ValueError, match="--reference"):
        served_table(result)


def test_of_the_kept_run_the_plugin_took_the_checkpoint_without_a_flag() -> None:
    result = load(SERVED)
    assert result is not None
    assert list(result["runs"]) == list(WAYS)
    assert result["runs"]["plugin"]["flags"] == []
    assert quantization(result["runs"]["plugin"]) == "qwen36_gptq"
    assert quantization(result["runs"]["gptq_marlin"]) == quantization(result["runs"]["stock"]) == "auto_gptq"


def test_of_the_kept_run_errors_are_those_of_bf16_but_for_prompts_that_stock_has_wrong() -> None:
    result = load(SERVED)
    assert result is not None
    ways = result["compared"]["ways"]
    assert all(ways[way]["prompts off"] == ways["stock"]["prompts off"] for way in WAYS)
    assert len(ways["stock"]["prompts off"]) < 0.05 * result["compared"]["prompts"]
    yardstick = ways[BF16]["log_probability_error"]["rms"]
    assert {
        way: found["log_probability_error"]["rms"] / yardstick < 1.1 for way, found in ways.items()
    } == dict.fromkeys(ways, True)
