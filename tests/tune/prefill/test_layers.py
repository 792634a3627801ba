"""``qwen36 tune prefill`` builds its layers by vLLM's own GPTQ method, and takes their times as start-up does."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch

pytest.importorskip("vllm")

from vllm.model_executor.kernels import linear as kernels
from vllm.model_executor.kernels.linear.mixed_precision.MPLinearKernel import MPLinearKernel
from vllm.platforms import current_platform

from gptq_hybrid.packing import dequantize_symmetric
from vllm_qwen36_plugin.prefill import dispatch, kernel, measure, prepare, routes
from vllm_qwen36_plugin.prefill.profile import Card, Starts
from vllm_qwen36_plugin.tune.prefill import layers
from vllm_qwen36_plugin.tune.prefill.result import Tuned
from vllm_qwen36_plugin.tune.prefill.shapes import Linears, list_linears

MINI = Path(__file__).parents[3] / "bench" / "mini" / "checkpoint" / "config.json"
TOKENS = (64, 256, 1024)
DENSE_ERROR = 0.01


class MarlinLinearKernel(MPLinearKernel):  # type: ignore[misc]
    """By its name Marlin; it leaves the weight as the checkpoint has it."""

    @classmethod
    def get_min_capability(cls) -> int:
        return -1

    @classmethod
    def can_implement(cls, c: Any) -> tuple[bool, str | None]:
        return True, None

    def process_weights_after_loading(self, layer: torch.nn.Module) -> None:
        layer.qzeros = None

    def apply_weights(self, layer: Any, x: torch.Tensor, bias: torch.Tensor | None = None) -> torch.Tensor:
        return x @ dequantize_symmetric(layer.qweight, layer.scales, 4).t()


def expand(words: Any, scales: Any, out: torch.Tensor, first: int, **_: Any) -> None:
    part = slice(first, first + len(out))
    out.copy_(dequantize_symmetric(words[:, part].contiguous(), scales[:, part].contiguous(), 4))


class Measured:
    """Instead of a GPU's clock: each call is made once and compared, then times by formula, noisy in turn."""

    def __init__(self) -> None:
        self.calls: list[tuple[str, int, tuple[str, ...]]] = []

    def __call__(
        self,
        linear: dispatch.Linear,
        tensors: Sequence[torch.Tensor],
        fp8_scales: torch.Tensor | None,
        counts: Sequence[int],
        measured_routes: Sequence[Any],
        tick: Any,
    ) -> measure.Times:
        self.calls.append((linear.shape.key, len(counts), tuple(measured_routes)))
        noise = (1.0, 30.0, 1.0)[len(self.calls) % 3]
        x = torch.randn(8, linear.shape.k, dtype=torch.bfloat16)
        expected = linear.stock(x, tensors).float()
        for route in measured_routes:
            off = linear.run(route, x, linear.weight(tensors, fp8_scales)).float() - expected
            assert off.norm() < DENSE_ERROR * expected.norm()
        for _ in counts:
            tick()
        times = {"stock": {m: noise * m for m in counts}}
        return times | {route: {m: 200 + 0.5 * m for m in counts} for route in measured_routes}


@pytest.fixture
def measured(monkeypatch: pytest.MonkeyPatch) -> Measured:
    """A stand-in for a GPU on which vLLM chooses Marlin."""
    enum = current_platform._enum
    lists = {**kernels._POSSIBLE_KERNELS, enum: [kernel.PrefillLinearKernel, MarlinLinearKernel]}
    monkeypatch.setattr(kernels, "_POSSIBLE_KERNELS", lists)
    monkeypatch.setattr(routes, "expand", expand)
    monkeypatch.setattr(measure, "card", lambda _, scratch_mib: Card("A card", "1", {}, scratch_mib))
    stand_in = Measured()
    monkeypatch.setattr(measure, "time_routes", stand_in)
    return stand_in


def run(
    linears: Sequence[Linears], progress: list[tuple[int, int]] | None = None, scratch_mib: int = 1
) -> Tuned:
    calls: list[tuple[int, int]] = [] if progress is None else progress
    return layers.tune(
        linears,
        dtype="bfloat16",
        scratch_mib=scratch_mib,
        fp8=False,
        a8=False,
        counts=TOKENS,
        device=torch.device("cpu"),
        on_progress=lambda done, total: calls.append((done, total)),
    )


def test_every_kind_is_built_tested_and_timed(measured: Measured) -> None:
    linears = list_linears(json.loads(MINI.read_text()))
    progress: list[tuple[int, int]] = []
    tuned = run(linears, progress)
    assert list(tuned.linears.values()) == linears
    assert tuned.notes == ()
    assert {shape.layout for shape in tuned.linears} == {"marlin"}
    assert tuned.profile.card == Card("A card", "1", {}, 1)
    assert tuned.profile.source.startswith("measured: A card, ")
    for shape, kind in tuned.linears.items():
        assert (shape.k, shape.n, shape.bits, shape.group_size) == (
            kind.k,
            kind.n,
            kind.bits,
            kind.group_size,
        )
        assert tuned.profile.times_us[shape]["stock"] == {64: 64.0, 256: 256.0, 1024: 1024.0}, (
            "one round is off"
        )
        assert tuned.profile.starts[shape] == Starts(exact=1024)
    assert measured.calls == [
        (shape.key, len(TOKENS), ("exact",)) for shape in tuned.linears for _ in range(layers.ROUNDS)
    ]
    total = len(linears) * len(TOKENS) * layers.ROUNDS
    assert progress == sorted(progress)
    assert progress[0] == (0, total)
    assert progress[-1] == (total, total)
    assert {done for done, _ in progress} == set(range(total + 1))


def test_nothing_of_it_stays_behind(measured: Measured) -> None:
    from vllm.config import get_current_vllm_config_or_none

    run(list_linears(json.loads(MINI.read_text()))[:1])
    assert dispatch.linears() == []
    assert prepare.latest() is None
    assert get_current_vllm_config_or_none() is None
    assert not torch.distributed.is_initialized()


def test_a_route_that_fails_its_test_is_not_timed(
    measured: Measured, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(routes, "expand", lambda words, scales, out, first, **_: out.zero_())
    tuned = run([Linears(256, 512, 4, 128, ("down_proj",), 8)])
    (shape,) = tuned.linears
    assert set(tuned.profile.times_us[shape]) == {"stock"}
    assert tuned.profile.starts[shape] == Starts()
    (note,) = tuned.notes
    assert note.startswith(f"exact is off for {shape.key}: ")


def test_the_profile_has_the_gemm_that_was_faster(
    measured: Measured, monkeypatch: pytest.MonkeyPatch
) -> None:
    def time_routes(*args: Any) -> measure.Times:
        args[0].gemms = ("vllm", "torch")
        gemms = {"fp8_vllm": 20.0, "fp8_torch": 10.0}
        return measured(*args) | {name: dict.fromkeys(TOKENS, us) for name, us in gemms.items()}

    monkeypatch.setattr(measure, "time_routes", time_routes)
    tuned = run([Linears(256, 512, 4, 128, ("down_proj",), 8)])
    (shape,) = tuned.linears
    assert tuned.profile.starts[shape] == Starts(1024, 64, "torch")
    assert tuned.profile.times_us[shape]["fp8"] == dict.fromkeys(TOKENS, 10.0)
    assert tuned.as_json()["profile"]["shapes"][shape.key]["fp8_gemm"] == "torch"


def test_scratch_that_holds_no_part_of_a_weight(measured: Measured) -> None:
    tuned = run([Linears(17408, 128, 4, 128, ("down_proj",), 1)])
    assert "64 columns of 17408 values need" in tuned.notes[0]


def test_a_kernel_of_another_layout_is_left_out(measured: Measured, monkeypatch: pytest.MonkeyPatch) -> None:
    class Other(MarlinLinearKernel):
        pass

    lists = {current_platform._enum: [kernel.PrefillLinearKernel, Other]}
    monkeypatch.setattr(kernels, "_POSSIBLE_KERNELS", lists)
    tuned = run([Linears(256, 512, 4, 128, ("down_proj",), 8)])
    assert tuned.linears == {}
    assert tuned.profile.starts == {}
    assert tuned.notes == ("down_proj is left to Other: the layout of Other is not known",)


def test_time_that_runs_out_ends_after_a_whole_round(
    measured: Measured, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(layers, "BUDGET", 0.0)
    progress: list[tuple[int, int]] = []
    tuned = run([Linears(256, 512, 4, 128, ("down_proj",), 8)], progress)
    assert len(measured.calls) == 1
    assert len(tuned.profile.times_us) == 1
    assert progress[-1] == (9, 9)
