"""Files of somebody else's are read within bounds, and whatever is no file is refused at once."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import pytest

from gptq_hybrid.calibration import load_rows
from gptq_hybrid.checkpoint import read_draft_vocab, read_json_object
from gptq_hybrid.common.errors import CheckpointError, HybridError
from gptq_hybrid.common.small_files import read_json, read_small_file
from gptq_hybrid.demo.builder import DemoCheckpoint
from gptq_hybrid.recipes import load_recipe
from vllm_qwen36_plugin.prefill.profile import ProfileError, read

NESTED = b'{"a":' + b"[" * 200_000


def a_pipe(path: Path) -> None:
    os.mkfifo(path)


def a_device(path: Path) -> None:
    path.symlink_to("/dev/zero")


def a_folder(path: Path) -> None:
    path.mkdir()


def nothing(path: Path) -> None:
    pass


def of_holes(path: Path) -> None:
    with path.open("wb") as file:
        file.truncate(1 << 40)


def nested(path: Path) -> None:
    path.write_bytes(NESTED)


ODD = [a_pipe, a_device, a_folder, nothing, of_holes]


@pytest.mark.parametrize("make", ODD)
def test_what_is_no_small_file_is_refused(tmp_path: Path, make: Callable[[Path], None]) -> None:
    make(tmp_path / "file")
    with pytest.raises(CheckpointError, match="file: "):
        read_small_file(tmp_path / "file")


@pytest.mark.parametrize("make", [*ODD, nested])
@pytest.mark.parametrize("reader", [read_json, read_json_object])
def test_json_that_cannot_be_had_is_one_clear_error(
    tmp_path: Path, make: Callable[[Path], None], reader: Callable[[Path], object]
) -> None:
    make(tmp_path / "file.json")
    with pytest.raises(CheckpointError, match=r"file\.json: "):
        reader(tmp_path / "file.json")


@pytest.mark.parametrize("make", [*ODD, nested])
def test_the_profile_of_a_card(tmp_path: Path, make: Callable[[Path], None]) -> None:
    make(tmp_path / "profile.json")
    with pytest.raises(ProfileError, match=r"profile\.json"):
        read(tmp_path / "profile.json")


@pytest.mark.parametrize("make", [*ODD, nested])
def test_the_list_to_draft_from(
    tmp_path: Path, make: Callable[[Path], None], original: DemoCheckpoint
) -> None:
    make(tmp_path / "list.json")
    with pytest.raises(CheckpointError, match=r"list\.json"):
        read_draft_vocab(original.path, file=tmp_path / "list.json")


@pytest.mark.parametrize("make", ODD)
def test_a_recipe_and_a_mix(tmp_path: Path, make: Callable[[Path], None]) -> None:
    path = tmp_path / "mine.toml"
    make(path)
    with pytest.raises(HybridError, match=r"mine\.toml"):
        load_recipe(str(path))
    with pytest.raises(HybridError, match=r"mine\.toml"):
        load_rows(str(path), 1, 0)


def test_a_small_file_is_read_whole(tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(b"x" * 5000)
    assert read_small_file(tmp_path / "a", most=5000) == b"x" * 5000
    with pytest.raises(CheckpointError, match="larger than 0 MiB"):
        read_small_file(tmp_path / "a", most=4999)
