"""Writing safetensors files out of the bytes of others."""

from __future__ import annotations

import json
import os
import struct
from collections.abc import Iterable, Iterator
from hashlib import sha256
from pathlib import Path
from typing import Any

from ._safetensors import TensorInfo, read_header
from .errors import CheckpointError
from .files import Files, Range

_COPY_CHUNK = 1 << 24


def write_verbatim(
    target: Path, sources: Iterable[tuple[Files, TensorInfo]], metadata: dict[str, str]
) -> dict[str, str]:
    """Write tensors into a new safetensors file byte for byte as their sources hold them.

    Data is streamed in 16 MiB pieces, so memory does not grow with tensor size;
    the file is fsynced. The caller renames it into place.

    Returns:
        SHA-256 of each tensor's bytes, in hexadecimal, by name.

    Raises:
        CheckpointError: a source ended early, or what was read back differs from what was read.
    """
    ordered = sorted(sources, key=lambda item: item[1].name)
    header: dict[str, Any] = {"__metadata__": metadata} if metadata else {}
    offset = 0
    for _, info in ordered:
        header[info.name] = {
            "dtype": info.dtype,
            "shape": list(info.shape),
            "data_offsets": [offset, offset + info.nbytes],
        }
        offset += info.nbytes
    raw = json.dumps(header, separators=(",", ":")).encode()
    raw += b" " * (-len(raw) % 8)
    digests: dict[str, str] = {}
    with target.open("wb") as out:
        out.write(struct.pack("<Q", len(raw)) + raw)
        for files, info in ordered:
            digest = sha256()
            for piece in pieces(files, info):
                digest.update(piece)
                out.write(piece)
            digests[info.name] = digest.hexdigest()
        out.flush()
        os.fsync(out.fileno())
    _verify(target, digests)
    return digests


def pieces(files: Files, info: TensorInfo) -> Iterator[bytes]:
    """A tensor's bytes, 16 MiB at a time.

    Raises:
        CheckpointError: the file ended before its header says it should.
    """
    at = info.begin
    while at < info.end:
        piece = files.read(Range(info.file, at, min(_COPY_CHUNK, info.end - at)))
        if not piece:
            raise CheckpointError(info.file, f"ended {info.end - at} bytes before its header says it should")
        yield piece
        at += len(piece)


def tensor_digest(files: Files, info: TensorInfo) -> str:
    """SHA-256 of one tensor's bytes, in hexadecimal."""
    digest = sha256()
    for piece in pieces(files, info):
        digest.update(piece)
    return digest.hexdigest()


def _verify(path: Path, digests: dict[str, str]) -> None:
    from .files import LocalFiles

    files = LocalFiles(path.parent)
    for name, info in read_header(path).items():
        if tensor_digest(files, info) != digests[name]:
            raise CheckpointError(path, f"{name} differs from its source after writing: a failing disk?")
