"""A run that cannot write ends with one message that says so: no traceback, and never without a word."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("gptqmodel")

from gptq_hybrid.demo.builder import DemoCheckpoint
from gptq_hybrid.quantize.state import RunState, state_folder

# A limit on the size of a file fails writes as a full disk does, with another number, and needs no mount.
_LIMITED = """
import resource, sys
resource.setrlimit(resource.RLIMIT_FSIZE, (int(sys.argv[1]), int(sys.argv[1])))
sys.argv = ["qwen36", *sys.argv[2:]]
from gptq_hybrid.cli import main
main()
"""
_TASK = """
import os
from gptq_hybrid.common.quiet import output_to_log
from gptq_hybrid.upstream import told_before_abort
from gptq_hybrid.upstream.versions import prepare_environment
prepare_environment()
import gptqmodel, torch
def fail():
    raise OSError(28, "No space left on device", "/a/file")
def tell(error):
    os.write(terminal_again, f"TOLD {error!r}\\n".encode())
terminal_again = os.dup(1)
with output_to_log("test"), told_before_abort(tell):
    gptqmodel.DEVICE_THREAD_POOL.submit(torch.device("cpu"), fail).result()
"""


def limited(size: int, source: Path, target: Path, *more: str) -> subprocess.CompletedProcess[str]:
    arguments = ["quantize", str(source), str(target), "--calibration", "demo", "--samples", "12"]
    return subprocess.run(
        [sys.executable, "-c", _LIMITED, str(size), *arguments, "--max-length", "128", *more],
        capture_output=True,
        text=True,
        check=False,
        timeout=400,
    )


def test_a_run_that_cannot_write_its_target_says_so_and_goes_on_later(
    original: DemoCheckpoint, tmp_path: Path
) -> None:
    """The demo's largest shard has more than 4 MiB, and no part of the state has."""
    target = tmp_path / "out"
    ended = limited(4 << 20, original.path, target, "--state-every", "1")
    said = ended.stdout + ended.stderr
    assert ended.returncode == 2, said[-3000:]
    assert "Traceback" not in said
    assert "the run ended because a file could not be written" in said
    assert "Give the same command again" in said
    assert not target.exists()
    assert list(tmp_path.glob(".out.partial-*")) == []
    assert RunState(state_folder(target)).layers() == 4


def test_a_task_of_gptqmodels_threads_is_told_of_before_the_process_ends() -> None:
    ended = subprocess.run(
        [sys.executable, "-c", _TASK], capture_output=True, text=True, check=False, timeout=200
    )
    assert ended.returncode == 1
    assert "TOLD OSError(28, 'No space left on device')" in ended.stdout


def test_a_target_on_a_read_only_mount_is_refused_before_the_run(
    original: DemoCheckpoint, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from gptq_hybrid.common.errors import HybridError
    from gptq_hybrid.quantize import QuantizeRequest, plan, plan_run
    from gptq_hybrid.recipes import load_recipe

    monkeypatch.setattr(plan.os, "access", lambda path, mode: Path(path) != tmp_path)
    request = QuantizeRequest(original.path, tmp_path / "out", load_recipe("static"), "demo")
    with pytest.raises(HybridError, match=f"{tmp_path} cannot be written"):
        plan_run(request)
