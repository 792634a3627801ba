"""Before start on a GPU: Triton is given a folder that stays, unless the user named one."""

from __future__ import annotations

import logging
import os
from pathlib import Path

import pytest
from vllm import envs
from vllm.platforms import current_platform

from tests.log_lines import lines_from
from vllm_qwen36_plugin.start.triton_cache import VARIABLE, check_before_start


@pytest.fixture(autouse=True)
def _card(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    # Set and taken away again, so that what the check sets is undone too.
    monkeypatch.setenv(VARIABLE, "")
    monkeypatch.setattr(envs, "VLLM_CACHE_ROOT", str(tmp_path / "cache"), raising=False)
    monkeypatch.setattr(type(current_platform), "get_device_name", lambda *_: "NVIDIA L40S (48 GB)")


def said() -> str:
    with lines_from(logging.INFO) as lines:
        check_before_start(None)
    return lines()


def test_a_first_start_says_that_it_tunes_and_where_that_is_kept(tmp_path: Path) -> None:
    text = said()
    folder = tmp_path / "cache" / "qwen36-triton" / "NVIDIA-L40S-48-GB"
    assert os.environ[VARIABLE] == str(folder)
    assert folder.is_dir()
    assert f"{folder}; this first start tunes them" in text


def test_a_later_start_finds_them(tmp_path: Path) -> None:
    folder = tmp_path / "cache" / "qwen36-triton" / "NVIDIA-L40S-48-GB"
    (folder / "kernel").mkdir(parents=True)
    text = said()
    assert os.environ[VARIABLE] == str(folder)
    assert str(folder) in text
    assert "first start" not in text


def test_a_folder_of_the_user_s_is_left_alone(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv(VARIABLE, "/elsewhere")
    assert said() == ""
    assert os.environ[VARIABLE] == "/elsewhere"
    assert not (tmp_path / "cache").exists()


def test_a_cache_that_cannot_be_written_is_a_warning(tmp_path: Path) -> None:
    (tmp_path / "cache").write_text("a file where the folder would be")
    text = said()
    assert not os.environ[VARIABLE]
    assert f"set {VARIABLE} to a folder that stays" in text
