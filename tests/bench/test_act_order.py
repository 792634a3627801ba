"""`bench/act_order`: what is concluded from decode steps and from answers, and the model that is served."""

from __future__ import annotations

from typing import Any

import pytest

torch = pytest.importorskip("torch")

from bench import dummy  # noqa: E402
from bench.act_order.report import HERE, added, quantization, same_first_token  # noqa: E402
from bench.results import load  # noqa: E402
from gptq_hybrid.packing import natural_g_idx  # noqa: E402


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


def test_of_the_kept_run_the_plugin_took_the_checkpoint_and_errors_are_those_of_bf16() -> None:
    result = load(HERE / "served.json")
    assert result is not None
    runs, ways = result["runs"], result["compared"]["ways"]
    assert list(runs) == ["plugin", "gptq_marlin", "stock"]
    assert runs["plugin"]["flags"] == []
    assert quantization(runs["plugin"]) == "qwen36_gptq"
    assert quantization(runs["gptq_marlin"]) == quantization(runs["stock"]) == "auto_gptq"
    assert all(ways[way]["prompts off"] == ways["stock"]["prompts off"] for way in runs)
    assert len(ways["stock"]["prompts off"]) < 0.05 * result["compared"]["prompts"]
    yardstick = ways["transformers in BF16"]["log_probability_error"]["rms"]
    errors = {way: entry["log_probability_error"]["rms"] for way, entry in ways.items()}
    assert max(errors.values()) < 1.1 * yardstick
