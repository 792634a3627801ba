"""What can be known to fail is said before the run, with what to do about it."""

from __future__ import annotations

import shutil
from collections import namedtuple
from pathlib import Path

import pytest

from gptq_hybrid.checkpoint import HybridError, layout_for
from gptq_hybrid.demo.builder import DemoCheckpoint
from gptq_hybrid.quantize import QuantizeRequest, preflight
from gptq_hybrid.quantize._estimate import hidden_state_bytes, quantized_bytes, working_bytes
from tests.checkpoint.test_layout import CONFIG_27B

Usage = namedtuple("Usage", "total used free")


def test_a_good_source_is_described_and_nothing_is_written(original: DemoCheckpoint, tmp_path: Path) -> None:
    found = preflight(QuantizeRequest(original.path, tmp_path / "out"))
    facts = dict(found.facts)
    assert "15 tensors" in facts["MTP head"]
    assert "25 modules" in facts["source"]
    assert list(tmp_path.iterdir()) == []


def test_too_little_disk_is_refused(
    original: DemoCheckpoint, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(shutil, "disk_usage", lambda path: Usage(1 << 30, (1 << 30) - 4096, 4096))
    with pytest.raises(HybridError, match="are needed"):
        preflight(QuantizeRequest(original.path, tmp_path / "out"))
    assert list(tmp_path.iterdir()) == []


def test_estimates_at_27b_are_those_of_the_published_artifact() -> None:
    layout = layout_for(CONFIG_27B)
    # The artifact: about 18 GiB of main shards and 0.79 GiB of MTP head.
    assert 17.5 < quantized_bytes(layout, 4, 128) / 2**30 < 19.5
    # 512 rows of 2,048 tokens, in and out: 21.5 GB.
    assert round(hidden_state_bytes(5120, 512, 2048) / 1e9, 1) == 21.5
    assert 5 < working_bytes(layout) / 2**30 < 9


def test_the_estimate_is_close_to_what_is_written(original: DemoCheckpoint, quantized) -> None:  # type: ignore[no-untyped-def]
    from gptq_hybrid.checkpoint import Checkpoint

    path = quantized("static").path
    written = sum(info.nbytes for info in Checkpoint.open(path).loaded.values())
    assert quantized_bytes(layout_for(Checkpoint.open(path).config), 4, 128) == written
