"""A planned run opens its source no more, and one whose modules failed leaves nothing but a log of them."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

import gptq_hybrid.quantize
from gptq_hybrid.checkpoint import Checkpoint
from gptq_hybrid.cli._quantize import quantize_command
from gptq_hybrid.common.errors import HybridError
from gptq_hybrid.demo.builder import DemoCheckpoint
from gptq_hybrid.losses import read_log
from gptq_hybrid.quantize import QuantizeRequest, plan_run, quantize, run
from gptq_hybrid.quantize.state import state_folder
from gptq_hybrid.recipes import load_recipe
from gptq_hybrid.writer import Limits, QuantizationFailedError


@dataclass
class Failed:
    """A run that failed: what it raised, what it called, and which folders it opened as checkpoints."""

    request: QuantizeRequest
    error: QuantizationFailedError
    calls: list[tuple[Any, ...]]
    opened: list[Path]


@pytest.fixture(scope="module")
def failed(original: DemoCheckpoint, tmp_path_factory: pytest.TempPathFactory) -> Failed:
    # Past this limit is any module, with or without inputs that are always zero.
    limits = Limits(dead_fraction=-1.0)
    request = QuantizeRequest(
        original.path,
        tmp_path_factory.mktemp("failed") / "out",
        recipe=load_recipe("static"),
        calibration="demo",
        samples=4,
        max_length=64,
        limits=limits,
    )
    plan = plan_run(request)
    calls: list[tuple[Any, ...]] = []
    opened: list[Path] = []
    open_checkpoint = Checkpoint.open.__func__  # type: ignore[attr-defined]

    def counted(cls: type[Checkpoint], path: str | Path, **options: bool) -> Checkpoint:
        opened.append(Path(path))
        return open_checkpoint(cls, path, **options)  # type: ignore[no-any-return]

    def note(name: str) -> Callable[..., None]:
        return lambda *arguments: calls.append((name, *arguments))

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Checkpoint, "open", classmethod(counted))
        patch.setattr(run, "plan_run", lambda request: pytest.fail("planned again"))
        with pytest.raises(QuantizationFailedError) as caught:
            quantize(
                plan,
                on_calibration=note("calibration"),
                on_manifest=note("manifest"),
                on_slower=note("slower"),
                on_layer=note("layer"),
            )
    return Failed(request, caught.value, calls, opened)


def test_the_plan_is_followed_without_opening_the_source_again(failed: Failed) -> None:
    assert failed.request.source not in failed.opened


def test_progress_is_reported_in_order(failed: Failed) -> None:
    names = list(dict.fromkeys(name for name, *_ in failed.calls))
    assert names == ["calibration", "manifest", "layer"]
    assert failed.calls[-1] == ("layer", 4, 4)


def test_a_failed_run_leaves_a_log_and_nothing_else(failed: Failed) -> None:
    target = failed.request.target
    log = target.with_name("out.failed.csv")
    assert list(target.parent.iterdir()) == [log]
    assert not state_folder(target).exists()
    records = read_log(log).modules
    assert len(records) == 25
    assert all(record.relative_error is not None for record in records)
    assert str(log) in failed.error.message
    assert f"qwen36 losses {log}" in (failed.error.remedy or "")


def test_a_request_is_planned_before_it_is_run(original: DemoCheckpoint, tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "file").touch()
    with pytest.raises(HybridError, match="exists already"):
        quantize(QuantizeRequest(original.path, tmp_path / "out"))


def test_a_target_that_came_after_the_plan_is_refused_at_once(
    original: DemoCheckpoint, tmp_path: Path
) -> None:
    plan = plan_run(QuantizeRequest(original.path, tmp_path / "out", calibration="demo"))
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "file").touch()
    with pytest.raises(HybridError, match="exists already"):
        quantize(plan)


def test_the_command_line_says_that_speed_ups_are_off_and_why(
    original: DemoCheckpoint,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    def slower(plan: Any, *, on_slower: Callable[[str], None], **others: Any) -> None:
        on_slower("gptqmodel 9.9 has moved: no patch of GPTQ.quantize applies")
        raise HybridError("enough")

    monkeypatch.setattr(gptq_hybrid.quantize, "quantize", slower)
    monkeypatch.setenv("COLUMNS", "60")
    with pytest.raises(HybridError, match="enough"):
        quantize_command(str(original.path), tmp_path / "out", calibration="demo", recipe="static")
    screen = capfd.readouterr().err
    (line,) = [line for line in screen.splitlines() if "gptqmodel 9.9" in line]
    assert re.search(r"warning: the speed-ups are off .*: gptqmodel 9\.9 has moved: no patch of", line)
