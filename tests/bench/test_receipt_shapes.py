"""The folders that the reference card's table is measured on."""

from __future__ import annotations

import runpy
import sys
from pathlib import Path

import pytest

from gptq_hybrid.checkpoint import Checkpoint
from gptq_hybrid.doctor import check


def test_both_are_read_and_fp8_has_the_larger_files(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(sys, "argv", ["shapes", str(tmp_path), "--tiny"])
    runpy.run_module("bench.receipt.shapes", run_name="__main__")
    sizes = {}
    for name in ("W4A16-27B", "FP8-27B"):
        opened = Checkpoint.open(tmp_path / name)
        sizes[name] = sum((tmp_path / name / file).stat().st_size for file in opened.referenced)
        # Weights are holes; everything but their values is as it should be.
        rules = {finding.rule for finding in check(tmp_path / name).errors}
        assert rules <= {"weights-values", "scales-values"}
    assert sizes["FP8-27B"] > sizes["W4A16-27B"]
