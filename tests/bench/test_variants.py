"""Runs of several variants in one file: which are kept, and what becomes of one that fails."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import Any

import pytest

from bench import variants
from bench.act_order import engine as act_order
from bench.drafts import engine as drafts
from bench.prefill import engine as prefill
from bench.results import load, merge, save, without

ORDER = ("plugin", "stock", "bf16")


def runs(path: Path) -> Any:
    found = load(path)
    assert found is not None
    return found["runs"]


def parsed(path: Path, *arguments: str) -> argparse.Namespace:
    return variants.arguments("", ORDER, ORDER[:2]).parse_args([str(path), *arguments])


@pytest.mark.parametrize("engine", [act_order, drafts, prefill])
def test_what_a_run_was_made_with_is_part_of_its_settings(engine: Any, tmp_path: Path) -> None:
    usual = engine.settings(engine.parsed([str(tmp_path), "--layers", "16"]))
    assert usual != engine.settings(engine.parsed([str(tmp_path), "--layers", "64"]))
    assert usual != engine.settings(engine.parsed([str(tmp_path), "--layers", "16", "--tiny"]))


def test_merging_keeps_runs_of_the_same_settings_only(tmp_path: Path) -> None:
    path = tmp_path / "engine.json"
    merge(path, {"layers": 16}, ORDER, "stock", {"complete": True})
    merge(path, {"layers": 16}, ORDER, "plugin", {"complete": False})
    assert list(runs(path)) == ["plugin", "stock"]
    merge(path, {"layers": 64}, ORDER, "bf16", {})
    assert list(runs(path)) == ["bf16"]


def test_a_variant_that_fails_leaves_no_earlier_run_and_others_stay(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "engine.json"
    for name in ORDER:
        merge(path, {}, ORDER, name, {"complete": True})

    def call(module: str, variant: str, argv: list[str], seconds: float) -> str | None:
        assert (module, argv) == ("bench.some", ["--x"])
        assert 50 < seconds <= 60
        if variant == "stock":
            return "cut off after 60 s"
        merge(path, {}, ORDER, variant, {"complete": True, "new": True})
        return None

    monkeypatch.setattr(variants, "call_variant", call)
    args = parsed(path, "--variants", "stock", "bf16", "--seconds", "60")
    assert variants.drive("bench.some", args, ["--x"]) == {"stock": "cut off after 60 s"}
    assert runs(path) == {"plugin": {"complete": True}, "bf16": {"complete": True, "new": True}}


def test_with_no_time_left_nothing_is_started(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(variants, "call_variant", lambda *_: pytest.fail("must not run"))
    args = parsed(tmp_path / "out.json", "--seconds", "5")
    assert variants.drive("bench.some", args, []) == {"plugin": "no time left", "stock": "no time left"}


def test_taking_runs_out_of_a_file_that_is_not_there_makes_none(tmp_path: Path) -> None:
    without(tmp_path / "none.json", ["plugin"])
    assert not (tmp_path / "none.json").exists()


MODULE = """
import sys, time
print(sys.argv)
if "slow" in sys.argv: time.sleep(60)
sys.exit(3 if "bad" in sys.argv else 0)
"""


@pytest.mark.parametrize(
    ("variant", "reason"), [("good", None), ("bad", "exit code 3"), ("slow", "cut off after 2 s")]
)
def test_a_variant_runs_in_a_process_of_its_own(
    variant: str, reason: str | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "made_module.py").write_text(MODULE)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    assert variants.call_variant("made_module", variant, ["out.json"], 2.0) == reason


def test_one_is_run_here_and_all_are_reported_and_failures_end_the_process(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "out.json"
    seen = []
    variants.main(
        "m", parsed(path, "--one", "bf16"), lambda name, _, folder: seen.append((name, folder.is_dir())), str
    )
    assert seen == [("bf16", True)]
    save(path, {"settings": {}, "runs": {"bf16": {}}})
    monkeypatch.setattr(sys, "argv", ["m", str(path)])
    monkeypatch.setattr(variants, "call_variant", lambda *_: "exit code 1")
    with pytest.raises(SystemExit, match="plugin: exit code 1, stock: exit code 1"):
        variants.main("m", parsed(path), lambda *_: None, lambda result: f"table of {list(result['runs'])}")
    assert "table of ['bf16']" in capsys.readouterr().out
