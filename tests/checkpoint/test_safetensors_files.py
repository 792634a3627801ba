"""A header is believed only if the file bears it out, and copies are verbatim."""

from __future__ import annotations

import json
import struct
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open

from gptq_hybrid.checkpoint import read_header, write_verbatim
from gptq_hybrid.checkpoint.files import LocalFiles
from gptq_hybrid.common.errors import CheckpointError


def write(path: Path, header: Any, data: bytes = b"") -> Path:
    raw = header if isinstance(header, bytes) else json.dumps(header).encode()
    path.write_bytes(struct.pack("<Q", len(raw)) + raw + data)
    return path


def entry(begin: int, end: int, shape: list[int], dtype: str = "BF16") -> dict[str, Any]:
    return {"dtype": dtype, "shape": shape, "data_offsets": [begin, end]}


def test_a_good_header_gives_absolute_offsets(tmp_path: Path) -> None:
    path = write(tmp_path / "a.safetensors", {"w": entry(0, 8, [2, 2])}, b"01234567")
    info = read_header(path)["w"]
    assert (info.dtype, info.shape, info.nbytes) == ("BF16", (2, 2), 8)
    assert path.read_bytes()[info.begin : info.end] == b"01234567"


@pytest.mark.parametrize(
    ("header", "data", "says"),
    [
        ({"w": entry(0, 8, [2, 2])}, b"0123", "truncated"),
        ({"w": entry(0, 6, [2, 2])}, b"01234567", "does not fit"),
        ({"w": entry(8, 0, [2, 2])}, b"01234567", "does not fit"),
        ({"w": {"dtype": "BF16", "shape": [2, 2]}}, b"", "malformed"),
        ({"w": entry(-8, 0, [2, 2])}, b"", "malformed"),
        ({"w": 3}, b"", "malformed"),
        ([], b"", "not a JSON object"),
        (b'{"w": 1, "w": 2}', b"", "twice"),
        (b"{", b"", "not valid JSON"),
        (b"[" * 100_000, b"", "not valid JSON"),
    ],
)
def test_a_bad_header_is_one_clear_error(tmp_path: Path, header: Any, data: bytes, says: str) -> None:
    with pytest.raises(CheckpointError, match=says):
        read_header(write(tmp_path / "a.safetensors", header, data))


@pytest.mark.parametrize(
    "content", [b"", b"\x01\x02", struct.pack("<Q", 1 << 63), struct.pack("<Q", 99) + b"{}"]
)
def test_a_file_shorter_than_it_says_is_refused_unread(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "a.safetensors"
    path.write_bytes(content)
    with pytest.raises(CheckpointError, match=r"too short|truncated"):
        read_header(path)


def test_a_verbatim_copy_keeps_every_byte_and_opens_with_the_reference_library(tmp_path: Path) -> None:
    first = write(tmp_path / "a.safetensors", {"x": entry(0, 8, [4])}, bytes(range(8)))
    second = write(tmp_path / "b.safetensors", {"pad": entry(0, 2, [1]), "y": entry(2, 6, [2])}, b"ppyyYY")
    files = LocalFiles(tmp_path)
    sources = [(files, read_header(second)["y"]), (files, read_header(first)["x"])]
    write_verbatim(tmp_path / "c.safetensors", sources, {"format": "pt"})
    with safe_open(str(tmp_path / "c.safetensors"), framework="pt") as handle:
        names = handle.keys()
        tensors = {name: handle.get_tensor(name).view(torch.uint8) for name in names}
    assert bytes(tensors["x"].tolist()) == bytes(range(8))
    assert bytes(tensors["y"].tolist()) == b"yyYY"
