"""A state is compared with the run that would continue it; who may use it, and when a run keeps none."""

from __future__ import annotations

import json
import shutil
import threading
from collections import namedtuple
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from gptq_hybrid.checkpoint import layout_for
from gptq_hybrid.common.errors import HybridError
from gptq_hybrid.demo.builder import DemoCheckpoint
from gptq_hybrid.quantize import QuantizeRequest, plan_run
from gptq_hybrid.quantize.state import (
    RunState,
    calibration_items,
    decide_state,
    differences,
    open_state,
    request_items,
    state_folder,
    state_size,
)
from gptq_hybrid.quantize.state.manifest import code_digest
from gptq_hybrid.recipes import load_recipe
from gptq_hybrid.recipes.sizes import dense_state_bytes, hidden_state_bytes, packed_modules_bytes
from gptq_hybrid.upstream import IncompatibleError, resumable
from tests.checkpoint.test_layout import CONFIG_27B

Usage = namedtuple("Usage", "total used free")
CALIBRATION = {"sha256": "ab", "rows": 8, "sources": [{"source": "demo"}]}


def keep_state(request: QuantizeRequest, layers: int) -> RunState:
    """The folder of a run of ``request``, killed after ``layers``: all that is read before gptqmodel reads it."""
    items = request_items(request, hidden_on_cpu=False) | calibration_items(CALIBRATION)
    with open_state(request.target, items, restart=False) as state:
        (state.store / "objects").mkdir(parents=True)
        (state.store / "objects" / "aa").write_text(json.dumps({"cursor": layers}))
        (state.store / "CURRENT").write_text(json.dumps({"version": 1, "generations": ["aa"]}))
    return state


@pytest.fixture
def request_(original: DemoCheckpoint, tmp_path: Path) -> QuantizeRequest:
    return QuantizeRequest(original.path, tmp_path / "out", calibration="demo", samples=8, max_length=64)


def test_a_state_of_the_same_run_is_continued_and_the_plan_says_so(request_: QuantizeRequest) -> None:
    keep_state(request_, 2)
    plan = plan_run(request_)
    assert plan.state.done == 2
    assert dict(plan.facts)["state"].startswith("continuing after layer 2 of 4, from ")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"seed": 5}, "--seed: 0 before, 5 now"),
        ({"samples": 9}, "--samples: 8 before, 9 now"),
        ({"keep_mtp": False}, "--mtp: true before, false now"),
        ({"recipe": load_recipe("group-aware")}, "recipe desc_act: true before, false now"),
        ({"recipe": load_recipe("careful")}, "recipe dynamic: absent before, {"),
        ({"recipe": load_recipe("compact")}, "recipe lm_head.bits: 16 before, 8 now"),
    ],
)
def test_a_state_of_another_run_is_refused_before_anything_is_done(
    request_: QuantizeRequest, change: dict[str, Any], message: str
) -> None:
    state = keep_state(request_, 2)
    with pytest.raises(HybridError) as refused:
        plan_run(replace(request_, **change))
    assert message in refused.value.message
    assert "--restart" in (refused.value.remedy or "")
    assert state.layers() == 2


def test_another_calibration_is_refused_when_it_is_drawn(request_: QuantizeRequest) -> None:
    state = keep_state(request_, 2)
    items = request_items(request_, hidden_on_cpu=False)
    items |= calibration_items(CALIBRATION | {"sha256": "cd"})
    with (
        pytest.raises(HybridError, match="calibration sha256: ab before, cd now"),
        open_state(request_.target, items, restart=False),
    ):
        pass
    assert state.layers() == 2


def test_restart_throws_the_state_away(request_: QuantizeRequest) -> None:
    keep_state(request_, 2)
    again = replace(request_, seed=5, restart=True)
    assert plan_run(again).state.done == 0
    with open_state(again.target, {"--seed": "5"}, restart=True) as state:
        assert state.layers() == 0
        assert state.manifest() == {"--seed": "5"}


def test_a_state_without_a_finished_layer_binds_nobody(request_: QuantizeRequest) -> None:
    with open_state(request_.target, {"--seed": "1"}, restart=False):
        pass
    assert plan_run(request_).state.done == 0
    with open_state(request_.target, {"--seed": "0"}, restart=False) as state:
        assert state.manifest() == {"--seed": "0"}


def test_a_damaged_state_is_named_with_the_way_out(request_: QuantizeRequest) -> None:
    state = keep_state(request_, 2)
    (state.store / "CURRENT").write_text('{"generations": [')
    with pytest.raises(HybridError, match="CURRENT does not hold") as refused:
        plan_run(request_)
    assert "--restart" in (refused.value.remedy or "")
    assert plan_run(replace(request_, restart=True)).state.done == 0


def test_two_processes_do_not_write_one_target(tmp_path: Path) -> None:
    with (
        open_state(tmp_path / "out", {}, restart=False),
        pytest.raises(HybridError, match="another process is quantizing into"),
        open_state(tmp_path / "out", {}, restart=True),
    ):
        pass


def test_what_a_killed_run_left_unfinished_is_cleared_and_its_state_kept(request_: QuantizeRequest) -> None:
    state = keep_state(request_, 2)
    attempt, half = state.store / "attempt-x1", request_.target.parent / ".out.partial-12345678"
    other = request_.target.parent / ".out2.partial-12345678"
    for folder in (attempt, half, other):
        folder.mkdir()
        (folder / "model.safetensors").write_bytes(b"half")
    items = request_items(request_, hidden_on_cpu=False) | calibration_items(CALIBRATION)
    with open_state(request_.target, items, restart=False):
        assert not attempt.exists()
        assert not half.exists()
        assert other.exists()
        assert state.layers() == 2
    state.remove()
    assert not state_folder(request_.target).exists()


def test_long_values_are_cut_to_where_they_differ() -> None:
    before, now = "x" * 300 + "old" + "y" * 300, "x" * 300 + "new" + "y" * 300
    (line,) = differences({"recipe dynamic": before}, {"recipe dynamic": now})
    assert "old" in line
    assert "new" in line
    assert len(line) < 250


def test_a_run_that_cannot_be_continued_says_why_in_one_line(request_: QuantizeRequest) -> None:
    gptaq = plan_run(replace(request_, recipe=load_recipe("static-mse-gptaq")))
    line = dict(gptaq.facts)["state"]
    assert line.startswith("a run that is killed starts anew: ")
    assert "GPTAQ" in line
    assert "\n" not in line
    assert gptaq.state.size is None
    assert "--no-resume" in dict(plan_run(replace(request_, resume=False)).facts)["state"]


def test_gptqmodel_keeps_a_state_on_the_main_thread_only(request_: QuantizeRequest) -> None:
    lines: list[str] = []
    thread = threading.Thread(target=lambda: lines.append(dict(plan_run(request_).facts)["state"]))
    thread.start()
    thread.join()
    assert "main thread" in lines[0]


def test_a_state_that_main_memory_cannot_hold_is_not_kept(
    request_: QuantizeRequest, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("gptq_hybrid.quantize.state.decision.free_memory", lambda: 1 << 10)
    assert "of main memory" in dict(plan_run(request_).facts)["state"]


def test_the_disk_check_counts_the_state_and_offers_to_do_without(
    request_: QuantizeRequest, monkeypatch: pytest.MonkeyPatch
) -> None:
    state = plan_run(request_).state
    # Room for the target and half of the state.
    free = 8_700_000 + state.disk // 2
    monkeypatch.setattr(shutil, "disk_usage", lambda path: Usage(1 << 40, 0, free))
    with pytest.raises(HybridError, match="are needed") as refused:
        plan_run(request_)
    assert "--no-resume needs" in (refused.value.remedy or "")


def test_at_27b_every_eighth_layer_is_kept() -> None:
    layout = layout_for(CONFIG_27B)
    inputs = hidden_state_bytes(5120, 512 * 2048) // 2
    settings = load_recipe("static-mse").settings
    dense = dense_state_bytes(layout, settings)
    # The tower's 0.86 GiB, norms and the small projections of Gated-DeltaNet.
    assert 0.86 < dense / 2**30 < 1.0
    size = state_size(inputs, packed_modules_bytes(layout, settings), dense)
    assert size.interval == 8
    # Three states of 11.4 GiB, and twice 11.8 GiB of modules.
    assert 56 < size.disk / 2**30 < 60
    assert 22 < size.memory / 2**30 < 24
    assert state_size(inputs // 8, 0).interval == 1
    each = state_size(inputs, packed_modules_bytes(layout, settings), dense, 1)
    assert each == replace(size, interval=1)


def test_a_state_is_kept_as_often_as_requested_and_the_plan_says_how_often(request_: QuantizeRequest) -> None:
    assert "state kept after each layer" in dict(plan_run(request_).facts)["state"]
    often = replace(request_, state_every=3)
    assert "state kept every 3 layers" in dict(plan_run(often).facts)["state"]


def test_of_gptqmodels_refusals_only_dynamic_and_the_model_type_go() -> None:
    from gptqmodel import QuantizeConfig
    from gptqmodel.looper import gptq_checkpoint

    upstream = gptq_checkpoint.validate_checkpoint_support
    hybrid = SimpleNamespace(config=SimpleNamespace(model_type="qwen3_5"))
    rules = {"+:.*down_proj$": {"bits": 8}}
    allowed = SimpleNamespace(
        model=hybrid, quantize_config=QuantizeConfig(bits=4, group_size=128, dynamic=rules)
    )
    with pytest.raises(NotImplementedError):
        upstream(allowed)
    with resumable({}):
        gptq_checkpoint.validate_checkpoint_support(allowed)
        assert allowed.quantize_config.dynamic == rules
        head = SimpleNamespace(
            model=hybrid, quantize_config=QuantizeConfig(bits=4, group_size=128, lm_head=True)
        )
        with pytest.raises(NotImplementedError):
            gptq_checkpoint.validate_checkpoint_support(head)
    assert gptq_checkpoint.validate_checkpoint_support is upstream


def test_a_state_adapter_of_another_version_is_not_patched(monkeypatch: pytest.MonkeyPatch) -> None:
    from gptqmodel.looper import gptq_checkpoint

    monkeypatch.setattr(gptq_checkpoint.QuantizationCheckpointAdapter, "VERSION", 4)
    with pytest.raises(IncompatibleError, match="version 4; 3 is expected"), resumable({}):
        pass


def test_a_run_computed_one_way_is_not_continued_in_another(monkeypatch: pytest.MonkeyPatch) -> None:
    from gptqmodel.looper import gptq_checkpoint

    upstream = gptq_checkpoint.QuantizationCheckpointAdapter
    restored: list[Any] = []
    monkeypatch.setattr(upstream, "capture", lambda self: ({"specs": []}, {}))
    monkeypatch.setattr(upstream, "restore", lambda self, state, artifacts: restored.append(state))
    with resumable({}, method="products half"):
        adapter = gptq_checkpoint.QuantizationCheckpointAdapter
        state, _ = adapter.__new__(adapter).capture()
        adapter.__new__(adapter).restore(state, {})
    with resumable({}, method="gptqmodel alone"):
        adapter = gptq_checkpoint.QuantizationCheckpointAdapter
        with pytest.raises(HybridError, match="by 'products half', and this one is by 'gptqmodel alone'"):
            adapter.__new__(adapter).restore(state, {})
    assert restored == [state]


def test_a_state_has_to_fit_beside_what_its_run_takes(
    request_: QuantizeRequest, monkeypatch: pytest.MonkeyPatch
) -> None:
    free = 3 << 30
    monkeypatch.setattr("gptq_hybrid.quantize.state.decision.free_memory", lambda: free)
    sizes = {"inputs": 1 << 28, "packed": 0, "dense": 0, "hidden_on_cpu": False}
    state = state_size(1 << 28, 0).memory
    assert decide_state(request_, **sizes, run_memory=free - state).size is not None
    refused = decide_state(request_, **sizes, run_memory=free - state + 1)
    assert refused.size is None
    assert "beside the run's 2.5 GiB" in refused.reason


def test_the_code_that_decides_the_result_is_part_of_the_run(tmp_path: Path) -> None:
    def package(name: str, patch: str = "+ line") -> Path:
        for folder in ("upstream/speedups", "definition", "packing", "tuning", "streaming"):
            (tmp_path / name / folder).mkdir(parents=True)
            (tmp_path / name / folder / "module.py").write_text("code")
        (tmp_path / name / "upstream" / "solver.patch").write_text(patch)
        return tmp_path / name

    first, same = package("first"), package("same")
    assert code_digest(first) == code_digest(same)
    # Below folders of the room, and in patches, too.
    deeper = package("deeper")
    (deeper / "upstream" / "speedups" / "module.py").write_text("other code")
    assert len({code_digest(first), code_digest(deeper), code_digest(package("patched", "- line"))}) == 3


def test_a_folder_of_code_that_was_renamed_is_noticed(tmp_path: Path) -> None:
    for folder in ("upstream", "definition", "packing"):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "module.py").write_text("code")
    (tmp_path / "definition" / "module.py").rename(tmp_path / "module.py")
    with pytest.raises(AssertionError, match="definition holds no code"):
        code_digest(tmp_path)
