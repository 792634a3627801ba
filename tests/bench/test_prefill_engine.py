"""bench/prefill/engine: its model, its ways, and what is taken of a run."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import torch

from bench.dummy import set_scales, write_checkpoint
from bench.prefill import engine
from bench.prefill import ways as timing
from bench.prefill.ways import OneWay, Ways
from gptq_hybrid.checkpoint import read_json_object
from vllm_qwen36_plugin.prefill.dispatch import Linear
from vllm_qwen36_plugin.prefill.profile import Starts
from vllm_qwen36_plugin.prefill.shape import Shape

WIDE = Shape("marlin", 5120, 34816, 4, 128, "bfloat16")
SMALL = Shape("marlin", 6144, 5120, 4, 128, "bfloat16")


def test_ways_that_take_turns_are_not_recorded_in_graphs(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        engine.parsed(["x", "--graphs"])
    assert "name exact, fp8" in capsys.readouterr().err
    assert engine.parsed(["x", "--graphs", "--variants", "stock", "exact"]).graphs


def test_checkpoint_of_the_bf16_original_says_nothing_of_quantization(tmp_path: Path) -> None:
    packed = read_json_object(write_checkpoint(tmp_path / "packed", 4, quantized=True) / "config.json")
    dense = read_json_object(write_checkpoint(tmp_path / "dense", 4, quantized=False) / "config.json")
    quantization = packed.pop("quantization_config")
    assert isinstance(quantization, dict)
    assert quantization["desc_act"] is False
    assert packed == dense


def test_weights_get_the_spread_that_keeps_a_layers_output_as_large_as_its_input() -> None:
    model = torch.nn.ModuleDict(
        {"linear_attn": torch.nn.ModuleDict({"norm": torch.nn.LayerNorm(8, bias=False)})}
    )
    linear = torch.nn.Module()
    linear.register_parameter("scales", torch.nn.Parameter(torch.zeros(8, 256)))
    model["mlp"] = linear
    model["linear_attn"]["norm"].weight.data.fill_(1e-3)
    assert set_scales(model) == 1
    assert bool((linear.scales > 0).all())
    values = torch.randint(0, 16, (1024, 256), generator=torch.Generator().manual_seed(0)) - 8
    weight = values * linear.scales.detach().repeat_interleave(128, dim=0)
    x = torch.randn(64, 1024, generator=torch.Generator().manual_seed(1))
    assert 0.9 < float((x @ weight).square().mean().sqrt()) < 1.2
    assert bool((model["linear_attn"]["norm"].weight == 1).all())
    with pytest.raises(RuntimeError, match="nothing was built as quantized"):
        set_scales(torch.nn.Linear(2, 2))


def entry(shape: Shape, starts: Starts, routes: tuple[Any, ...] = ("fp8", "exact")) -> Linear:
    return Linear(shape, None, ("qweight",), 0, 0, lambda: None, starts, routes)  # type: ignore[arg-type]


@pytest.fixture
def ways() -> Ways:
    linears = [entry(WIDE, Starts(1024, 256)), entry(SMALL, Starts(2048, None))]
    return Ways(linears, {WIDE.key: 64, SMALL.key: 128})


def serve(ways: Ways, tokens: int) -> None:
    """What the op counts in one pass."""
    for linear, _, _ in ways._linears:
        linear.served[linear.route_for(tokens) or "stock"] += ways._layers[linear.shape.key]


def test_each_way_takes_its_routes_from_the_measured_tokens_on(ways: Ways) -> None:
    assert ways.names == ("stock", "exact", "fp8")
    assert ways.taken("stock", 4096) == {WIDE.key: "stock", SMALL.key: "stock"}
    assert ways.taken("exact", 1024) == {WIDE.key: "exact", SMALL.key: "stock"}
    assert ways.taken("fp8", 4096) == {WIDE.key: "fp8", SMALL.key: "exact"}
    assert ways.taken("fp8", 128) == {WIDE.key: "stock", SMALL.key: "stock"}


def test_a_pass_that_goes_its_way_is_counted_and_no_problem(ways: Ways) -> None:
    with ways.through("fp8", 4096) as calls:
        serve(ways, 4096)
    assert calls == {WIDE.key: {"fp8": 64}, SMALL.key: {"exact": 128}}
    with ways.through("stock", 4096) as calls:
        serve(ways, 4096)
    assert calls == {WIDE.key: {"stock": 64}, SMALL.key: {"stock": 128}}
    assert ways.problems == []


def test_a_pass_that_was_captured_split_or_went_another_way_is_a_problem(ways: Ways) -> None:
    with ways.through("exact", 4096):
        pass  # As if a CUDA graph were replayed: the op is not called.
    assert len(ways.problems) == 1
    with ways.through("exact", 4096):
        serve(ways, 2048)
        serve(ways, 2048)
    assert len(ways.problems) == 2
    with ways.through("exact", 1024):
        serve(ways, 4096)
    assert len(ways.problems) == 3
    assert "exact with 1024 tokens" in ways.problems[-1]


def test_a_route_that_failed_its_test_is_no_way() -> None:
    linears = [entry(WIDE, Starts(1024, 256), ("exact",)), entry(SMALL, Starts(2048, None), ())]
    ways = Ways(linears, {WIDE.key: 1, SMALL.key: 1})
    assert ways.names == ("stock", "exact")
    assert ways.taken("exact", 8192) == {WIDE.key: "exact", SMALL.key: "stock"}
    with pytest.raises(ValueError, match="no way 'fp8'"), ways.through("fp8"):
        pass


def test_a_plugin_that_serves_nothing_ends_the_run() -> None:
    with pytest.raises(RuntimeError, match="serves no linear"):
        Ways([], {})
    with pytest.raises(RuntimeError, match="not in both"):
        Ways([entry(WIDE, Starts())], {WIDE.key: 1, SMALL.key: 1})


class FakeEngine:
    """Counts passes as the op would; one token a request."""

    def __init__(self, ways: Ways) -> None:
        self.ways = ways

    def generate(self, given: list[dict[str, list[int]]], sampling: Any, use_tqdm: bool) -> list[Any]:
        tokens = sum(len(prompt["prompt_token_ids"]) for prompt in given)
        serve(self.ways, tokens)
        done = type("Completion", (), {"token_ids": [0] * sampling.max_tokens})
        return [type("Output", (), {"outputs": [done]}) for _ in given]


def test_ways_take_turns_and_all_are_timed_equally_often(ways: Ways, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[str] = []
    through = Ways.through

    def noted(self: Ways, name: str, tokens: int | None = None) -> Any:
        seen.append(name)
        return through(self, name, tokens)

    monkeypatch.setattr(Ways, "through", noted)
    found = timing.first_tokens(FakeEngine(ways), ways, "2x1024", 3, 1000)
    assert {way: len(times) for way, times in found.items()} == {"stock": 3, "exact": 3, "fp8": 3}
    assert seen[:3] == ["stock", "exact", "fp8"]
    assert Counter(seen[3:]) == {"stock": 3, "exact": 3, "fp8": 3}
    assert [seen[3 + 3 * round_] for round_ in range(3)] == ["stock", "exact", "fp8"]
    assert ways.problems == []


def test_without_a_gpu_no_pass_is_made_for_its_kernels(ways: Ways, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert timing.kernels_of_a_first_token(FakeEngine(ways), ways, "1024", 1000) == {}
    assert ways.problems == []


def test_a_process_without_the_plugin_has_one_way_and_counts_nothing() -> None:
    way = OneWay("bf16")
    with way.through("bf16", 2048) as calls:
        pass
    assert calls == {}
    with pytest.raises(ValueError, match="no way 'exact'"), way.through("exact"):
        pass


class Choice:
    """An engine whose first token has this log-probability."""

    def __init__(self, logprob: float) -> None:
        done = type(
            "Completion", (), {"token_ids": [7], "logprobs": [{7: type("L", (), {"logprob": logprob})}]}
        )
        self.output = type("Output", (), {"outputs": [done]})

    def generate(self, *_: Any, **__: Any) -> list[Any]:
        return [self.output]


@pytest.mark.parametrize(("logprob", "problems"), [(-5.0, 0), (float("nan"), 1), (-6.907755, 1)])
def test_logits_that_are_no_numbers_or_all_alike_are_a_problem(logprob: float, problems: int) -> None:
    way = OneWay("stock")
    found = timing.first_choice(Choice(logprob), way, "64", 1000)
    assert len(way.problems) == problems
    assert found["stock"]["token"] == 7
