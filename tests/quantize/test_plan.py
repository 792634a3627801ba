"""A run is planned once: what can be known to fail is refused before it, with what to do about it."""

from __future__ import annotations

import shutil
from collections import namedtuple
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import pytest

from gptq_hybrid.checkpoint import Checkpoint
from gptq_hybrid.common.errors import HybridError
from gptq_hybrid.demo.builder import DemoCheckpoint
from gptq_hybrid.quantize import QuantizeRequest, RunPlan, plan, plan_run
from gptq_hybrid.recipes import load_recipe
from gptq_hybrid.recipes.sizes import hidden_state_bytes, projection_input_bytes, working_bytes

Usage = namedtuple("Usage", "total used free")


@pytest.fixture
def planned(original: DemoCheckpoint, tmp_path: Path) -> Callable[..., RunPlan]:
    """Plan a run from the constructed checkpoint into a new folder."""

    def make(**options: object) -> RunPlan:
        return plan_run(QuantizeRequest(original.path, tmp_path / "out", **options))  # type: ignore[arg-type]

    return make


def test_a_good_source_is_described_and_nothing_is_written(
    planned: Callable[..., RunPlan], tmp_path: Path
) -> None:
    facts = dict(planned().facts)
    assert "15 tensors" in facts["MTP head"]
    assert "25 modules" in facts["source"]
    assert dict(planned(keep_mtp=False).facts)["MTP head"] == "left out (--no-mtp)"
    assert list(tmp_path.iterdir()) == []


def test_the_plan_holds_what_was_worked_out(
    planned: Callable[..., RunPlan], original: DemoCheckpoint, monkeypatch: pytest.MonkeyPatch
) -> None:
    opened: list[Path] = []
    open_checkpoint = Checkpoint.open.__func__  # type: ignore[attr-defined]

    def counted(cls: type[Checkpoint], path: Path, **options: bool) -> Checkpoint:
        opened.append(path)
        return open_checkpoint(cls, path, **options)  # type: ignore[no-any-return]

    monkeypatch.setattr(Checkpoint, "open", classmethod(counted))
    run = planned(samples=8, max_length=64)
    assert opened == [original.path]
    assert run.checkpoint.path == original.path
    assert len(run.mtp_head) == 15
    assert (run.sizes.tokens, run.sizes.layers) == (512, 4)
    # The bound is what a run can draw at most; sizes of fewer tokens are in proportion.
    fewer = run.sizes.with_tokens(128)
    assert (4 * fewer.hidden, 4 * fewer.projection) == (run.sizes.hidden, run.sizes.projection)
    assert (fewer.output, fewer.working) == (run.sizes.output, run.sizes.working)


def test_a_target_that_holds_files_is_refused(planned: Callable[..., RunPlan], tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    planned()
    (tmp_path / "out" / "config.json").write_text("{}")
    with pytest.raises(HybridError, match="exists already"):
        planned()
    (tmp_path / "out.partial").mkdir()
    with pytest.raises(HybridError) as refused:
        planned()
    assert "out.partial is left over" in (refused.value.remedy or "")


def test_too_little_disk_is_refused(
    planned: Callable[..., RunPlan], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(shutil, "disk_usage", lambda path: Usage(1 << 30, (1 << 30) - 4096, 4096))
    with pytest.raises(HybridError, match="are needed"):
        planned()
    assert list(tmp_path.iterdir()) == []


def test_what_a_recipe_saves_is_listed_choice_by_choice(planned: Callable[..., RunPlan]) -> None:
    compact = planned(recipe=load_recipe("compact"))
    lines = [value for _, value in compact.facts]
    assert any(line.startswith("lm_head in 8 bit: ") and line.endswith(" less") for line in lines)
    assert any(line.startswith("MTP head in ") and line.endswith(" less") for line in lines)
    assert any(line.startswith("no vision tower: ") and line.endswith(" less") for line in lines)
    assert any("text alone" in warning for warning in compact.warnings)


@pytest.mark.parametrize(
    ("recipe", "warned"), [("reference", True), ("static", False), ("group-aware", False)]
)
def test_what_act_order_will_cost_is_a_warning(
    planned: Callable[..., RunPlan], recipe: str, warned: bool
) -> None:
    warnings = planned(recipe=load_recipe(recipe)).warnings
    assert any(warning.startswith("act order: ") for warning in warnings) is warned


@pytest.fixture
def card(monkeypatch: pytest.MonkeyPatch) -> Callable[[int, int], None]:
    """A GPU of so many bytes, and so much main memory free."""
    import torch

    def put(gpu: int, free: int) -> None:
        monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
        monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
        monkeypatch.setattr(torch.cuda, "get_device_name", lambda number=0: "some card")
        monkeypatch.setattr(
            torch.cuda, "get_device_properties", lambda number=0: SimpleNamespace(total_memory=gpu)
        )
        monkeypatch.setattr(plan, "free_memory", lambda: free)

    return put


def test_main_memory_is_stated_with_what_lies_there_and_warned_of_where_it_is_not_free(
    planned: Callable[..., RunPlan], original: DemoCheckpoint, card: Callable[[int, int], None]
) -> None:
    options = {"samples": 4096, "max_length": 2048, "resume": False}
    first = planned(**options)
    tokens = 4096 * 2048
    hidden = hidden_state_bytes(int(first.checkpoint.text_config["hidden_size"]), tokens)
    projection, working = projection_input_bytes(first.layout, tokens), working_bytes(first.layout)
    card(100 * (hidden + projection + working), 1 << 50)
    large = planned(**options)
    assert dict(large.facts)["main memory"].startswith("about 6.0 GiB")
    assert not large.memory.hidden_on_cpu
    card((hidden + working) // 2, 1 << 30)
    small = planned(**options)
    both = (6 * 2**30 + hidden + projection) / 2**30
    assert dict(small.facts)["main memory"] == f"about {both:.1f} GiB (estimate) of 1.0 GiB free"
    assert small.memory.hidden_on_cpu
    assert any(f"about {both:.1f} GiB of main memory" in warning for warning in small.warnings)
