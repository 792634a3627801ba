"""A repair killed at any step leaves the old checkpoint or the new one, and a second run completes it."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from gptq_hybrid.checkpoint import INDEX_NAME, MTP_FILE
from gptq_hybrid.common.atomic import locked
from gptq_hybrid.common.errors import HybridError
from gptq_hybrid.demo.builder import DemoCheckpoint
from gptq_hybrid.doctor.repair import repair
from tests.corpus import Workshop

from .folders import content, nothing_lost, rules, without_head

# A process that kills itself at the N-th call that changes the file system.
KILLED = """
import os, signal, sys
from gptq_hybrid.doctor.repair import repair
left = int(sys.argv[1])
def mortal(function):
    def call(*args, **kwargs):
        global left
        left -= 1
        if left < 0:
            os.kill(os.getpid(), signal.SIGKILL)
        return function(*args, **kwargs)
    return call
for name in ("replace", "rename", "link", "fsync", "unlink", "mkdir", "rmdir"):
    setattr(os, name, mortal(getattr(os, name)))
path, donor, out = sys.argv[2:]
repair(path, mtp_from=donor, out=out or None)
"""
# A grafted head that the index does not name yet is no worse than an absent one. A wrong total_size shows only
# once every file can be read.
ON_THE_WAY = {"mtp-unindexed", "index-orphan-file", "index-total-size"}


def damaged_checkpoint(build: Callable[..., DemoCheckpoint], folder: Path, fault: str) -> Path:
    """A checkpoint with a wrong total_size, and a head that is absent or cut short."""
    whole = build(mtp="separate").path
    if fault == "head-absent":
        shop = Workshop(without_head(whole, folder.with_name("headless")), folder)
    else:
        shop = Workshop(whole, folder)
        path = shop.path(MTP_FILE)
        path.write_bytes(path.read_bytes()[:-100])
    shop.json(INDEX_NAME, lambda i: i["metadata"].update(total_size=1))
    return shop.folder


def run(step: int, path: Path, donor: Path, out: str = "") -> int:
    command = [sys.executable, "-c", KILLED, str(step), str(path), str(donor), out]
    return subprocess.run(command, capture_output=True, check=False, timeout=60).returncode


@pytest.mark.parametrize("fault", ["head-absent", "head-cut"])
def test_killed_at_every_step_in_place(
    build: Callable[..., DemoCheckpoint], original: DemoCheckpoint, tmp_path: Path, fault: str
) -> None:
    template = damaged_checkpoint(build, tmp_path / "template", fault)
    old = rules(template)
    before = content(template)
    killed = 0
    for step in range(100):
        path = Workshop(template, tmp_path / str(step)).folder
        code = run(step, path, original.path)
        after = content(path)
        assert rules(path) <= old | ON_THE_WAY
        assert nothing_lost(before, after), step
        assert before.keys() <= after.keys(), step
        if code == 0:
            break
        assert code == -signal.SIGKILL
        killed += 1
        assert repair(path, mtp_from=original.path).left == ()
    assert rules(path) == set()
    assert killed >= 8


def test_killed_at_every_step_of_a_copy(
    build: Callable[..., DemoCheckpoint], original: DemoCheckpoint, tmp_path: Path
) -> None:
    path = damaged_checkpoint(build, tmp_path / "template", "head-absent")
    before = content(path)
    for step in range(0, 200, 3):
        out = tmp_path / f"out-{step}"
        code = run(step, path, original.path, str(out))
        assert content(path) == before
        if out.exists():
            assert rules(out) == set(), "a copy appears whole or not at all"
        if code == 0:
            break
        assert code == -signal.SIGKILL
        if step % 4 == 0 and not out.exists():  # the next one removes what the killed one left
            assert repair(path, mtp_from=original.path, out=out).left == ()
            assert list(tmp_path.glob(f".{out.name}.partial-*")) == []
    assert out.exists()
    assert step > 10


def test_a_repair_cleans_up_after_one_that_was_killed_in_place(
    build: Callable[..., DemoCheckpoint], original: DemoCheckpoint, tmp_path: Path
) -> None:
    template = damaged_checkpoint(build, tmp_path / "template", "head-cut")
    for step in range(100):
        path = Workshop(template, tmp_path / str(step)).folder
        if run(step, path, original.path) == 0:
            break
        repair(path, mtp_from=original.path)
        assert list(path.glob(".*.tmp")) == [], step
        backups = [p for p in path.iterdir() if ".bak" in p.name]
        assert len({p.read_bytes() for p in backups}) == len(backups), (
            "each backup holds something of its own"
        )
    assert step > 4


def test_two_repairs_at_once_are_one(
    build: Callable[..., DemoCheckpoint], original: DemoCheckpoint, tmp_path: Path
) -> None:
    path = damaged_checkpoint(build, tmp_path / "template", "head-absent")
    with locked(path) as free:
        assert free
        with pytest.raises(HybridError, match="another qwen36 repair is at work"):
            repair(path, mtp_from=original.path)
        assert repair(path, mtp_from=original.path, dry_run=True).done
    assert repair(path, mtp_from=original.path).backups == (f"{INDEX_NAME}.bak",)
    assert repair(path, mtp_from=original.path).backups == ()


def test_a_copy_that_is_being_built_by_another_process_is_left_alone(
    build: Callable[..., DemoCheckpoint], original: DemoCheckpoint, tmp_path: Path
) -> None:
    path = damaged_checkpoint(build, tmp_path / "template", "head-absent")
    living, gone = tmp_path / f".out.partial-{os.getpid()}-0", tmp_path / ".out.partial-0123abcd"
    living.mkdir()
    gone.mkdir()
    locked_one = tmp_path / ".out.partial-4567abcd"
    locked_one.mkdir()
    with locked(locked_one):
        repair(path, mtp_from=original.path, out=tmp_path / "out")
    assert living.exists()
    assert locked_one.exists()
    assert not gone.exists()
