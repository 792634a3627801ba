"""A file or folder appears whole or not at all, even when the process is killed."""

from __future__ import annotations

import signal
import subprocess
import sys
from pathlib import Path

import pytest

from gptq_hybrid.common.atomic import building_directory, building_file, keep_previous, write_text_atomic


def test_a_finished_block_appears_under_its_name(tmp_path: Path) -> None:
    with building_directory(tmp_path / "target") as folder:
        (folder / "a").write_text("x")
        assert not (tmp_path / "target").exists()
    assert [p.name for p in tmp_path.iterdir()] == ["target"]
    assert (tmp_path / "target" / "a").read_text() == "x"


def test_a_failed_block_leaves_nothing(tmp_path: Path) -> None:
    def fail() -> None:
        with building_directory(tmp_path / "target") as folder:
            (folder / "a").write_text("x")
            raise RuntimeError

    with pytest.raises(RuntimeError):
        fail()
    assert list(tmp_path.iterdir()) == []


def test_an_existing_target_is_not_touched(tmp_path: Path) -> None:
    (tmp_path / "target").mkdir()
    (tmp_path / "target" / "mine").write_text("x")
    with pytest.raises(FileExistsError), building_directory(tmp_path / "target"):
        pytest.fail("must not run")
    assert (tmp_path / "target" / "mine").read_text() == "x"


def test_a_killed_process_leaves_no_target(tmp_path: Path) -> None:
    code = (
        "import os, signal, sys; from pathlib import Path\n"
        "from gptq_hybrid.common.atomic import building_directory\n"
        "with building_directory(Path(sys.argv[1])) as folder:\n"
        "    (folder / 'config.json').write_text('{}')\n"
        "    os.kill(os.getpid(), signal.SIGKILL)\n"
    )
    ended = subprocess.run([sys.executable, "-c", code, str(tmp_path / "target")], check=False)
    assert ended.returncode == -signal.SIGKILL
    left = [p.name for p in tmp_path.iterdir()]
    assert len(left) == 1
    assert left[0].startswith(".target.partial-")


def test_a_replaced_file_is_the_new_one(tmp_path: Path) -> None:
    path = tmp_path / "config.json"
    path.write_text("old")
    write_text_atomic(path, "new")
    assert path.read_text() == "new"
    assert list(tmp_path.iterdir()) == [path]


def test_a_failed_write_leaves_the_old_file(tmp_path: Path) -> None:
    path = tmp_path / "config.json"
    path.write_text("old")

    def fail() -> None:
        with building_file(path) as temporary:
            temporary.write_text("half")
            raise RuntimeError

    with pytest.raises(RuntimeError):
        fail()
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]


def test_a_killed_process_leaves_the_old_file(tmp_path: Path) -> None:
    path = tmp_path / "config.json"
    path.write_text("old")
    code = (
        "import os, signal, sys; from pathlib import Path\n"
        "from gptq_hybrid.common.atomic import building_file\n"
        "with building_file(Path(sys.argv[1])) as temporary:\n"
        "    temporary.write_text('half')\n"
        "    os.kill(os.getpid(), signal.SIGKILL)\n"
    )
    ended = subprocess.run([sys.executable, "-c", code, str(path)], check=False)
    assert ended.returncode == -signal.SIGKILL
    assert path.read_text() == "old"
    (temporary,) = (p.name for p in tmp_path.iterdir() if p != path)
    assert temporary.startswith(".config.json.")
    assert temporary.endswith(".tmp")


def test_what_is_replaced_is_kept_unless_it_is_the_same(tmp_path: Path) -> None:
    path = tmp_path / "list.json"
    assert keep_previous(path, "new") is None
    path.write_text("old")
    assert keep_previous(path, "old") is None
    assert [keep_previous(path, "new"), keep_previous(path)] == [
        tmp_path / "list.json.bak",
        tmp_path / "list.json.bak.1",
    ]
    assert (tmp_path / "list.json.bak").read_text() == "old"
    assert path.read_text() == "old"
