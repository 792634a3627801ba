"""A full disk or a read-only folder is told as what it is, whichever library met it."""

from __future__ import annotations

import errno
import os
import resource
from collections.abc import Callable
from pathlib import Path

import pytest

from gptq_hybrid.common.disk import room_text, writing_trouble
from gptq_hybrid.common.errors import HybridError


def from_torch(path: Path) -> None:
    import torch

    torch.save({"a": torch.zeros(1 << 20)}, path)


def from_safetensors(path: Path) -> None:
    import torch
    from safetensors.torch import save_file

    save_file({"a": torch.zeros(1 << 20)}, path)


def from_python(path: Path) -> None:
    path.write_bytes(b"0" * (1 << 20))


@pytest.mark.parametrize("write", [from_torch, from_safetensors, from_python])
def test_a_write_that_comes_up_short(tmp_path: Path, write: Callable[[Path], None]) -> None:
    """By a limit on the size of files, which fails as a full disk does."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 16, before[1]))
    try:
        with pytest.raises(Exception) as caught:  # noqa: PT011 - which error it is differs by library
            write(tmp_path / "file")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert writing_trouble(caught.value) is not None


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EROFS, errno.EACCES, errno.EDQUOT])
def test_the_systems_reason_and_the_file_are_told(number: int) -> None:
    error = OSError(number, os.strerror(number), "/a/file")
    assert writing_trouble(error) == f"/a/file: {os.strerror(number)}"
    wrapped = RuntimeError("saving failed")
    wrapped.__cause__ = error
    assert writing_trouble(wrapped) == f"/a/file: {os.strerror(number)}"


@pytest.mark.parametrize(
    "error", [ValueError("x"), FileNotFoundError(2, "No such file"), RuntimeError("out of memory")]
)
def test_other_errors_are_none_of_it(error: Exception) -> None:
    error.__context__ = error
    assert writing_trouble(error) is None


def test_the_room_is_that_of_the_nearest_folder(tmp_path: Path) -> None:
    assert room_text(tmp_path / "a" / "b").startswith(f"{tmp_path} has ")


def test_it_survives_an_error_that_stands_for_itself() -> None:
    error = HybridError("x")
    error.__cause__ = error
    assert writing_trouble(error) is None
