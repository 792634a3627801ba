"""Write safetensors files from the bytes of others, and the index that names them."""

from __future__ import annotations

import json
import os
import struct
from collections.abc import Callable, Iterable, Iterator
from hashlib import sha256
from pathlib import Path
from typing import Any

from gptq_hybrid.common.atomic import write_json_atomic
from gptq_hybrid.common.errors import CheckpointError, HybridError

from ._checkpoint import INDEX_NAME, MTP_FILE, Checkpoint
from .files import Files, LocalFiles, Range
from .headers import DTYPE_BITS, TensorInfo, read_header

_COPY_CHUNK = 1 << 24
# A request may take 30 s, in which 4 MiB arrive over a line of 1.2 Mbit/s.
_FAR_CHUNK = 1 << 22


def write_verbatim(
    target: str | Path,
    sources: Iterable[tuple[Files, TensorInfo]],
    metadata: dict[str, str] | Callable[[dict[str, str]], dict[str, str]],
    *,
    progress: Callable[[int], None] | None = None,
) -> dict[str, str]:
    """Write tensors into a new safetensors file, byte for byte as their sources hold them, and read it back.

    Data is streamed in pieces of 16 MiB, so memory does not grow with tensor size. The file is fsynced; the caller
    renames it into place.

    Args:
        target: the file to write.
        sources: for each tensor, the files it lies in and where.
        metadata: the header's ``__metadata__``, or a function that makes it from the SHA-256 digests by tensor.
            The header goes before the data, so its length must not depend on the digests.
        progress: called with the number of bytes of each piece written.

    Returns:
        SHA-256 of each tensor's bytes, in hexadecimal, by name.

    Raises:
        CheckpointError: a source ended early, or the file read back differs from its sources.
    """
    target = Path(target)
    describe = metadata if callable(metadata) else lambda digests: metadata
    ordered, entries = _lay_out(sources)
    placeholder = "0" * sha256().digest_size * 2
    raw = _header(describe({info.name: placeholder for _, info in ordered}), entries)
    digests: dict[str, str] = {}
    with target.open("wb") as out:
        out.write(struct.pack("<Q", len(raw)) + raw)
        for files, info in ordered:
            digest = sha256()
            for piece in pieces(files, info):
                digest.update(piece)
                out.write(piece)
                if progress is not None:
                    progress(len(piece))
            digests[info.name] = digest.hexdigest()
        final = _header(describe(digests), entries)
        if len(final) != len(raw):
            raise ValueError("the length of a header's metadata depends on what was written")
        out.seek(8)
        out.write(final)
        out.flush()
        os.fsync(out.fileno())
    _verify(target, digests)
    return digests


def planned_header(
    sources: Iterable[tuple[Files, TensorInfo]],
) -> tuple[bytes, list[tuple[Files, TensorInfo]]]:
    """Return how :func:`write_verbatim` begins a file with little metadata, and its tensors in their order.

    The bytes are those up to the first tensor's; the tensors follow without gaps.
    """
    ordered, entries = _lay_out(sources)
    raw = _header({"format": "pt"}, entries)
    return struct.pack("<Q", len(raw)) + raw, ordered


def _lay_out(
    sources: Iterable[tuple[Files, TensorInfo]],
) -> tuple[list[tuple[Files, TensorInfo]], dict[str, Any]]:
    # Widest first, as the reference implementation does: torch cannot view a misaligned element.
    ordered = sorted(sources, key=lambda item: (-DTYPE_BITS[item[1].dtype], item[1].name))
    entries: dict[str, Any] = {}
    offset = 0
    for _, info in ordered:
        entries[info.name] = {
            "dtype": info.dtype,
            "shape": list(info.shape),
            "data_offsets": [offset, offset + info.nbytes],
        }
        offset += info.nbytes
    return ordered, entries


def _header(metadata: dict[str, str], entries: dict[str, Any]) -> bytes:
    raw = json.dumps({"__metadata__": metadata, **entries}, separators=(",", ":")).encode()
    return raw + b" " * (-len(raw) % 8)


def pieces(files: Files, info: TensorInfo) -> Iterator[bytes]:
    """Yield a tensor's bytes, 16 MiB at a time (4 MiB over a network).

    Raises:
        CheckpointError: the file ended before its header says it should.
    """
    at, chunk = info.begin, _FAR_CHUNK if files.far else _COPY_CHUNK
    while at < info.end:
        piece = files.read(Range(info.file, at, min(chunk, info.end - at)))
        if not piece:
            raise CheckpointError(info.file, f"ended {info.end - at} bytes before its header says it should")
        yield piece
        at += len(piece)


def tensor_digest(files: Files, info: TensorInfo) -> str:
    """Return the SHA-256 of one tensor's bytes, in hexadecimal."""
    digest = sha256()
    for piece in pieces(files, info):
        digest.update(piece)
    return digest.hexdigest()


def _verify(path: Path, digests: dict[str, str]) -> None:
    files = LocalFiles(path.parent)
    for name, info in read_header(path).items():
        if tensor_digest(files, info) != digests[name]:
            raise CheckpointError(path, f"{name} differs from its source after writing: a failing disk?")


def write_mtp(
    folder: str | Path, source: str | Path, tensors: list[TensorInfo], *, name: str = MTP_FILE
) -> None:
    """Write the MTP head's file byte for byte from the checkpoint ``source``, and read it back.

    Raises:
        CheckpointError: the source ended early, or the bytes read back differ (a failing disk).
    """
    folder = Path(folder)
    files = Checkpoint.open(source).files
    write_verbatim(folder / name, [(files, info) for info in tensors], metadata={"format": "pt"})


def write_index(folder: str | Path) -> None:
    """Write an index of every tensor of every safetensors file in ``folder``, those of the MTP head included.

    Raises:
        HybridError: a tensor lies in two files.
    """
    folder = Path(folder)
    weight_map: dict[str, str] = {}
    total = 0
    for path in sorted(folder.glob("*.safetensors")):
        for name, info in read_header(path).items():
            if name in weight_map:
                raise HybridError(f"{name} lies both in {weight_map[name]} and in {path.name}")
            weight_map[name] = path.name
            total += info.nbytes
    write_json_atomic(
        folder / INDEX_NAME,
        {"metadata": {"total_size": total}, "weight_map": dict(sorted(weight_map.items()))},
    )
