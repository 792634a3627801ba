"""`repair` mends what takes no rewriting of weights, keeps what it replaces, and says what is left."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from gptq_hybrid.checkpoint import INDEX_NAME, MTP_FILE, Checkpoint, HybridError, check_mtp, repair
from gptq_hybrid.demo.builder import DemoCheckpoint


def test_an_unindexed_head_is_indexed(
    build: Callable[..., DemoCheckpoint], damaged: Callable[[Path], Path]
) -> None:
    path = damaged(build(mtp="unindexed").path)
    before = (path / INDEX_NAME).read_text()
    result = repair(path)
    assert len(result.done) == 1
    assert result.left == ()
    assert check_mtp(Checkpoint.open(path)) == []
    assert (path / f"{INDEX_NAME}.bak").read_text() == before
    total = json.loads((path / INDEX_NAME).read_text())["metadata"]["total_size"]
    assert total == sum(info.nbytes for info in Checkpoint.open(path).loaded.values())


def test_a_lost_head_is_grafted_bit_for_bit(
    build: Callable[..., DemoCheckpoint], damaged: Callable[[Path], Path], original: DemoCheckpoint
) -> None:
    path = damaged(build(mtp="none").path)
    assert [finding.rule for finding in repair(path).left] == ["mtp-missing"]
    assert repair(path, mtp_from=original.path).left == ()
    mended, donor = Checkpoint.open(path), Checkpoint.open(original.path)
    for name, info in mended.loaded.items():
        if name.startswith("mtp."):
            assert info.file == MTP_FILE
            assert mended.read_bytes(info) == donor.read_bytes(donor.loaded[name])


def test_a_broken_head_is_replaced_and_kept(separate: Path, original: DemoCheckpoint) -> None:
    whole = (separate / MTP_FILE).read_bytes()
    (separate / MTP_FILE).write_bytes(whole[:-10])
    assert repair(separate, mtp_from=original.path).left == ()
    assert (separate / f"{MTP_FILE}.bak").read_bytes() == whole[:-10]


def test_a_head_of_another_size_is_not_grafted(
    build: Callable[..., DemoCheckpoint], damaged: Callable[[Path], Path]
) -> None:
    path = damaged(build(mtp="none").path)
    before = {p.name: p.read_bytes() for p in path.iterdir()}
    with pytest.raises(HybridError, match=r"\[384, 768\].*needs.*\[256, 512\]"):
        repair(path, mtp_from=build(hidden_size=384).path)
    assert {p.name: p.read_bytes() for p in path.iterdir()} == before


def test_a_whole_checkpoint_is_left_alone(separate: Path) -> None:
    before = {p.name: p.stat().st_mtime_ns for p in separate.iterdir()}
    assert repair(separate).done == ()
    assert {p.name: p.stat().st_mtime_ns for p in separate.iterdir()} == before
