"""What the state of a killed run is compared with, who may use it, and when it is not kept."""

from __future__ import annotations

import json
import shutil
import threading
from collections import namedtuple
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from gptq_hybrid.checkpoint import layout_for
from gptq_hybrid.common.errors import HybridError
from gptq_hybrid.demo.builder import DemoCheckpoint
from gptq_hybrid.quantize import QuantizeRequest, preflight
from gptq_hybrid.quantize.state import (
    RunState,
    before_calibration,
    differences,
    of_calibration,
    open_state,
    plan_resume,
    source_identity,
    state_folder,
    state_size,
)
from gptq_hybrid.recipes import load_recipe
from gptq_hybrid.recipes.sizes import dense_state_bytes, hidden_state_bytes, packed_modules_bytes
from gptq_hybrid.upstream import IncompatibleError, resumable
from tests.checkpoint.test_layout import CONFIG_27B

Usage = namedtuple("Usage", "total used free")
CALIBRATION = {"sha256": "ab", "rows": 8, "sources": [{"source": "demo"}]}


def keep_state(request: QuantizeRequest, layers: int) -> RunState:
    """The folder of a run of ``request``, killed after ``layers``: all that is read before gptqmodel reads it."""
    items = before_calibration(request, hidden_on_cpu=False) | of_calibration(CALIBRATION)
    with open_state(request.target, items, restart=False) as state:
        (state.store / "objects").mkdir(parents=True)
        (state.store / "objects" / "aa").write_text(json.dumps({"cursor": layers}))
        (state.store / "CURRENT").write_text(json.dumps({"version": 1, "generations": ["aa"]}))
    return state


@pytest.fixture
def request_(original: DemoCheckpoint, tmp_path: Path) -> QuantizeRequest:
    return QuantizeRequest(original.path, tmp_path / "out", calibration="demo", samples=8, max_length=64)


def test_a_state_of_the_same_run_is_continued_and_said_so(request_: QuantizeRequest) -> None:
    keep_state(request_, 2)
    found = preflight(request_)
    assert found.resume.done == 2
    assert dict(found.facts)["state"].startswith("continuing after layer 2 of 4, from ")


@pytest.mark.parametrize(
    ("change", "said"),
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
    request_: QuantizeRequest, change: dict[str, Any], said: str
) -> None:
    state = keep_state(request_, 2)
    with pytest.raises(HybridError) as refused:
        preflight(replace(request_, **change))
    assert said in refused.value.message
    assert "--restart" in (refused.value.remedy or "")
    assert state.layers() == 2


def test_another_calibration_is_refused_when_it_is_drawn(request_: QuantizeRequest) -> None:
    state = keep_state(request_, 2)
    items = before_calibration(request_, hidden_on_cpu=False)
    items |= of_calibration(CALIBRATION | {"sha256": "cd"})
    with (
        pytest.raises(HybridError, match="calibration sha256: ab before, cd now"),
        open_state(request_.target, items, restart=False),
    ):
        pass
    assert state.layers() == 2


def test_restart_throws_the_state_away(request_: QuantizeRequest) -> None:
    keep_state(request_, 2)
    again = replace(request_, seed=5, restart=True)
    assert preflight(again).resume.done == 0
    with open_state(again.target, {"--seed": "5"}, restart=True) as state:
        assert state.layers() == 0
        assert state.manifest() == {"--seed": "5"}


def test_a_state_without_a_finished_layer_binds_nobody(request_: QuantizeRequest) -> None:
    with open_state(request_.target, {"--seed": "1"}, restart=False):
        pass
    assert preflight(request_).resume.done == 0
    with open_state(request_.target, {"--seed": "0"}, restart=False) as state:
        assert state.manifest() == {"--seed": "0"}


def test_a_damaged_state_is_named_with_the_way_out(request_: QuantizeRequest) -> None:
    state = keep_state(request_, 2)
    (state.store / "CURRENT").write_text('{"generations": [')
    with pytest.raises(HybridError, match="CURRENT does not hold") as refused:
        preflight(request_)
    assert "--restart" in (refused.value.remedy or "")
    assert preflight(replace(request_, restart=True)).resume.done == 0


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
    items = before_calibration(request_, hidden_on_cpu=False) | of_calibration(CALIBRATION)
    with open_state(request_.target, items, restart=False):
        assert not attempt.exists()
        assert not half.exists()
        assert other.exists()
        assert state.layers() == 2
    state.remove()
    assert not state_folder(request_.target).exists()


def test_a_fine_tune_with_the_same_header_is_another_source(
    original: DemoCheckpoint, damaged: Callable[[Path], Path]
) -> None:
    copy = damaged(original.path)
    assert source_identity(copy) == source_identity(original.path)
    shard = copy / "model-00002-of-00002.safetensors"
    content = bytearray(shard.read_bytes())
    # All weights moved a little, as by training; size and header stay.
    start = 8 + int.from_bytes(content[:8], "little")
    content[start:] = bytes(byte ^ 1 for byte in content[start:])
    shard.write_bytes(content)
    found = differences(source_identity(original.path), source_identity(copy))
    assert [line.split(":")[0] for line in found] == [shard.name]


def test_links_into_the_cache_of_the_hub_are_as_good_as_files(
    original: DemoCheckpoint, tmp_path: Path
) -> None:
    snapshot = tmp_path / "snapshots" / "abc"
    snapshot.mkdir(parents=True)
    for path in original.path.iterdir():
        (snapshot / path.name).symlink_to(path)
    assert source_identity(snapshot) == source_identity(original.path)


def test_long_values_are_cut_to_where_they_differ() -> None:
    before, now = "x" * 300 + "old" + "y" * 300, "x" * 300 + "new" + "y" * 300
    (line,) = differences({"recipe dynamic": before}, {"recipe dynamic": now})
    assert "old" in line
    assert "new" in line
    assert len(line) < 250


def test_a_run_that_cannot_be_continued_says_why_in_one_line(request_: QuantizeRequest) -> None:
    gptaq = preflight(replace(request_, recipe=load_recipe("static-mse-gptaq")))
    said = dict(gptaq.facts)["state"]
    assert said.startswith("a run that is killed starts anew: ")
    assert "GPTAQ" in said
    assert "\n" not in said
    assert gptaq.resume.size is None
    assert "--no-resume" in dict(preflight(replace(request_, resume=False)).facts)["state"]


def test_gptqmodel_keeps_a_state_on_the_main_thread_only(request_: QuantizeRequest) -> None:
    said: list[str] = []
    thread = threading.Thread(target=lambda: said.append(dict(preflight(request_).facts)["state"]))
    thread.start()
    thread.join()
    assert "main thread" in said[0]


def test_a_state_that_main_memory_cannot_hold_is_not_kept(
    request_: QuantizeRequest, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("gptq_hybrid.quantize.state._plan.free_memory", lambda: 1 << 10)
    assert "of main memory" in dict(preflight(request_).facts)["state"]


def test_the_disk_check_counts_the_state_and_offers_to_do_without(
    request_: QuantizeRequest, monkeypatch: pytest.MonkeyPatch
) -> None:
    state = preflight(request_).resume
    # Room for the target and half of the state.
    free = 8_700_000 + state.disk // 2
    monkeypatch.setattr(shutil, "disk_usage", lambda path: Usage(1 << 40, 0, free))
    with pytest.raises(HybridError, match="are needed") as refused:
        preflight(request_)
    assert "--no-resume needs" in (refused.value.remedy or "")


def test_at_27b_every_eighth_layer_is_kept() -> None:
    layout = layout_for(CONFIG_27B)
    inputs = hidden_state_bytes(5120, 512, 2048) // 2
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
    asked = state_size(inputs, packed_modules_bytes(layout, settings), dense, 1)
    assert asked == replace(size, interval=1)


def test_a_state_is_kept_as_often_as_asked_and_that_is_said(request_: QuantizeRequest) -> None:
    assert "state kept after each layer" in dict(preflight(request_).facts)["state"]
    often = replace(request_, state_every=3)
    assert "state kept every 3 layers" in dict(preflight(often).facts)["state"]


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
    with resumable({}, way="products half"):
        adapter = gptq_checkpoint.QuantizationCheckpointAdapter
        state, _ = adapter.__new__(adapter).capture()
        adapter.__new__(adapter).restore(state, {})
    with resumable({}, way="gptqmodel alone"):
        adapter = gptq_checkpoint.QuantizationCheckpointAdapter
        with pytest.raises(HybridError, match="by 'products half', and this one is by 'gptqmodel alone'"):
            adapter.__new__(adapter).restore(state, {})
    assert restored == [state]


def test_a_state_has_to_fit_beside_what_its_run_takes(
    request_: QuantizeRequest, monkeypatch: pytest.MonkeyPatch
) -> None:
    free = 3 << 30
    monkeypatch.setattr("gptq_hybrid.quantize.state._plan.free_memory", lambda: free)
    asked = {"inputs": 1 << 28, "packed": 0, "dense": 0, "hidden_on_cpu": False}
    state = state_size(1 << 28, 0).memory
    assert plan_resume(request_, **asked, beside=free - state).size is not None
    refused = plan_resume(request_, **asked, beside=free - state + 1)
    assert refused.size is None
    assert "beside the run's 2.5 GiB" in refused.reason
