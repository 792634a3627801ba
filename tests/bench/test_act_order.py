"""`bench/act_order`: what is concluded from decode steps and from answers, and the model that is served."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

torch = pytest.importorskip("torch")

from bench import dummy  # noqa: E402
from bench.act_order.report import HERE, added, quantization, same_first_token  # noqa: E402
from bench.act_order.served import BF16, WAYS, against, said_of  # noqa: E402
from bench.results import load  # noqa: E402
from gptq_hybrid.packing import natural_g_idx  # noqa: E402

END = 9


@pytest.fixture
def engine_result() -> dict[str, Any]:
    def run(one: float, many: float, token: int) -> dict[str, Any]:
        steps = {"1": [one, one + 0.2, one - 0.1], "16": [many, many, many + 1]}
        return {"step_ms": steps, "tokens": [[token, 1], [7, 1]]}

    return {"runs": {"none": run(10.0, 15.0, 1), "stock": run(12.0, 17.0, 2), "ours": run(10.5, 15.4, 2)}}


def test_what_act_order_adds_is_of_medians(engine_result: dict[str, Any]) -> None:
    found = added(engine_result)
    assert found["1"]["stock"] == pytest.approx(2.0)
    assert found["1"]["ratio"] == pytest.approx(0.25)
    assert found["16"]["ratio"] == pytest.approx(0.2)
    runs = engine_result["runs"]
    assert same_first_token(runs["stock"], runs["ours"]) == (2, 2)
    assert same_first_token(runs["none"], runs["ours"]) == (1, 2)
    del runs["none"]
    assert added(engine_result) == {}


def test_what_act_order_adds_is_by_kernels_where_both_have_them(engine_result: dict[str, Any]) -> None:
    runs = engine_result["runs"]
    for name, total in (("none", 9.0), ("stock", 9.8)):
        runs[name]["step_gpu_ms"] = {"1": {"total": total}}
    found = added(engine_result)
    assert found["1"]["stock"] == pytest.approx(0.8)
    assert found["1"]["ours"] == pytest.approx(0.5)


def test_random_order_is_an_act_order_and_always_the_same() -> None:
    order = dummy.random_order(512, 128)
    assert torch.equal(order, dummy.random_order(512, 128))
    assert not torch.equal(order, natural_g_idx(512, 128))
    assert torch.equal(order.sort().values, natural_g_idx(512, 128))
    assert order.dtype == torch.int32


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


def test_what_is_kept_of_a_log_says_who_served_and_not_from_where() -> None:
    log = """\
(EngineCore pid=7) INFO 11-28 [core.py:1] model='/a/b', quantization=qwen36_gptq, tokenizer='/a/b'
(EngineCore pid=7) INFO 11-28 [core.py:2] /a/b was loaded
(APIServer pid=8) INFO 11-28 [front.py:3] vllm-qwen36-plugin active
"""
    said = said_of(log, Path("/a/b"))
    assert said == [
        "model='CHECKPOINT', quantization=qwen36_gptq, tokenizer='CHECKPOINT'",
        "vllm-qwen36-plugin active",
    ]
    assert quantization({"log": said}) == "qwen36_gptq"
    with pytest.raises(ValueError, match="no line of vLLM's log says quantization="):
        quantization({"log": ["quantization_config=None"]})


def test_of_the_kept_run_the_plugin_took_the_checkpoint_and_errors_are_those_of_bf16() -> None:
    result = load(HERE / "served.json")
    assert result is not None
    runs, ways = result["runs"], result["compared"]["ways"]
    assert list(runs) == list(WAYS)
    assert runs["plugin"]["flags"] == []
    assert quantization(runs["plugin"]) == "qwen36_gptq"
    assert quantization(runs["gptq_marlin"]) == quantization(runs["stock"]) == "auto_gptq"
    assert all(ways[way]["prompts off"] == ways["stock"]["prompts off"] for way in WAYS)
    assert len(ways["stock"]["prompts off"]) < 0.05 * result["compared"]["prompts"]
    yardstick = ways[BF16]["log_probability_error"]["rms"]
    errors = {way: entry["log_probability_error"]["rms"] for way, entry in ways.items()}
    assert max(errors.values()) < 1.1 * yardstick
