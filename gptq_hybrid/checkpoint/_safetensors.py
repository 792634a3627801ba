"""safetensors headers and raw tensor bytes, without numpy or torch.

Format (https://github.com/huggingface/safetensors): eight bytes little-endian
header length, a JSON object ``{name: {"dtype", "shape", "data_offsets"}}`` with
offsets relative to the end of the header, then the data.
"""

from __future__ import annotations

import json
import os
import struct
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any, BinaryIO

from .errors import CheckpointError

# The reference implementation refuses longer headers; so do we, before reading one.
MAX_HEADER_BYTES = 100_000_000
_COPY_CHUNK = 1 << 24

DTYPE_BYTES = {
    "BOOL": 1, "U8": 1, "I8": 1, "F8_E4M3": 1, "F8_E5M2": 1, "F8_E8M0": 1,
    "I16": 2, "U16": 2, "F16": 2, "BF16": 2,
    "I32": 4, "U32": 4, "F32": 4,
    "I64": 8, "U64": 8, "F64": 8,
}  # fmt: skip


@dataclass(frozen=True, slots=True)
class TensorInfo:
    """One tensor as its header declares it.

    ``begin`` and ``end`` are absolute byte offsets in ``file`` (a name relative
    to the checkpoint folder).
    """

    name: str
    dtype: str
    shape: tuple[int, ...]
    file: str
    begin: int
    end: int

    @property
    def nbytes(self) -> int:
        return self.end - self.begin


def read_header(path: Path, *, file: str | None = None) -> dict[str, TensorInfo]:
    """Tensors of one safetensors file, from its header alone.

    Raises:
        CheckpointError: unreadable, not safetensors, truncated (declared data
            past the end of the file), or offsets that contradict shape and dtype.
    """
    label = file if file is not None else path.name
    try:
        size = path.stat().st_size
        with path.open("rb") as handle:
            prefix = handle.read(8)
            if len(prefix) < 8:
                raise CheckpointError(path, f"is {size} bytes long, too short for a safetensors file")
            (length,) = struct.unpack("<Q", prefix)
            if length > MAX_HEADER_BYTES or 8 + length > size:
                raise CheckpointError(
                    path,
                    f"declares a header of {length} bytes in a file of {size} bytes; truncated or not safetensors",
                    remedy="Download or copy this file again.",
                )
            raw = handle.read(length)
    except OSError as error:
        raise CheckpointError(path, f"cannot be read: {error.strerror or error}") from error
    return dict(_parse_header(path, label, raw, data_start=8 + length, size=size))


def _unique_pairs(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    out = dict(pairs)
    if len(out) != len(pairs):
        raise ValueError("a name occurs twice")
    return out


def _parse_header(
    path: Path, file: str, raw: bytes, *, data_start: int, size: int
) -> Iterator[tuple[str, TensorInfo]]:
    try:
        header = json.loads(raw, object_pairs_hook=_unique_pairs)
    except (ValueError, RecursionError) as error:
        raise CheckpointError(path, f"has a header that is not valid JSON: {error}") from error
    if not isinstance(header, dict):
        raise CheckpointError(path, "has a header that is not a JSON object")
    for name, entry in header.items():
        if name == "__metadata__":
            continue
        try:
            dtype, shape = entry["dtype"], tuple(entry["shape"])
            begin, end = entry["data_offsets"]
            well_formed = isinstance(dtype, str) and all(
                isinstance(n, int) and not isinstance(n, bool) and n >= 0 for n in (*shape, begin, end)
            )
        except (KeyError, TypeError, ValueError):
            well_formed = False
        if not well_formed:
            raise CheckpointError(path, f"has a malformed header entry for tensor {name!r}")
        expected = prod(shape) * DTYPE_BYTES.get(dtype, 0)
        if begin > end or (expected and end - begin != expected):
            raise CheckpointError(
                path, f"tensor {name!r} spans bytes {begin}..{end}, which does not fit {dtype} {list(shape)}"
            )
        if data_start + end > size:
            raise CheckpointError(
                path,
                f"is truncated: tensor {name!r} ends at byte {data_start + end}, the file has {size}",
                remedy="Download or copy this file again.",
            )
        yield name, TensorInfo(name, dtype, shape, file, data_start + begin, data_start + end)


def write_verbatim(
    target: Path, sources: Iterable[tuple[Path, TensorInfo]], metadata: dict[str, str]
) -> dict[str, TensorInfo]:
    """Write tensors into a new safetensors file byte for byte as their source files hold them.

    ``sources`` pairs each tensor with the absolute path of the file it lies in.
    Data is streamed in 16 MiB pieces, so memory does not grow with tensor size;
    the file is fsynced. The caller renames it into place.
    """
    ordered = sorted(sources, key=lambda item: item[1].name)
    header: dict[str, Any] = {"__metadata__": metadata}
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
    with target.open("wb") as out:
        out.write(struct.pack("<Q", len(raw)) + raw)
        for source, info in ordered:
            with source.open("rb") as handle:
                _copy_range(handle, out, info.begin, info.nbytes, source)
        out.flush()
        os.fsync(out.fileno())
    return read_header(target)


def _copy_range(source: BinaryIO, out: BinaryIO, begin: int, count: int, path: Path) -> None:
    source.seek(begin)
    while count:
        piece = source.read(min(count, _COPY_CHUNK))
        if not piece:
            raise CheckpointError(path, f"ended {count} bytes before its header says it should")
        out.write(piece)
        count -= len(piece)
