"""Read safetensors headers, without numpy or torch.

The format (https://github.com/huggingface/safetensors): the header's length in eight bytes, little-endian; a JSON
object ``{name: {"dtype", "shape", "data_offsets"}}`` with offsets relative to the end of the header; then the data,
which the tensors must cover without gaps or overlaps.
"""

from __future__ import annotations

import json
import struct
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from math import prod
from pathlib import Path
from typing import Any

from gptq_hybrid.common.errors import CheckpointError, TransferError

from .files import Files, LocalFiles, Range, file_label

# The reference implementation takes up to 100 MB. Parsed, a header takes about eight times its size. The 27B's
# longest is 0.1 MB: 8 MiB leaves room for any member of the family and bounds what a hostile file costs.
MAX_HEADER_BYTES = 8 << 20
# All headers of a checkpoint together; the 27B's are 0.3 MB.
MAX_HEADERS_BYTES = 12 << 20
# What a one-tensor header, and the length of every header, cost. Most headers of the 27B's five shards need a
# second read whatever this is.
_FIRST_READ = 16 << 10
_MOST_DIMENSIONS = 8
_AGAIN = "Download or copy this file again."

DTYPE_BITS = {
    "BOOL": 8, "U8": 8, "I8": 8, "F8_E4M3": 8, "F8_E5M2": 8, "F8_E8M0": 8,
    "F4": 4, "F6_E2M3": 6, "F6_E3M2": 6,
    "I16": 16, "U16": 16, "F16": 16, "BF16": 16,
    "I32": 32, "U32": 32, "F32": 32,
    "I64": 64, "U64": 64, "F64": 64, "C64": 64,
}  # fmt: skip


@dataclass(frozen=True, slots=True)
class TensorInfo:
    """One tensor as its header declares it.

    Attributes:
        name: full name.
        dtype: as safetensors spells it, such as ``BF16``.
        shape: dimensions.
        file: the file's name, relative to the checkpoint folder.
        begin, end: absolute byte offsets in ``file``.
    """

    name: str
    dtype: str
    shape: tuple[int, ...]
    file: str
    begin: int
    end: int

    @property
    def nbytes(self) -> int:
        """Size of the tensor in bytes."""
        return self.end - self.begin


@dataclass(frozen=True, slots=True)
class Header:
    """The header of one file: its tensors by name, and its ``__metadata__``."""

    tensors: dict[str, TensorInfo]
    metadata: Mapping[str, str] = field(default_factory=dict)


def read_header(path: str | Path, *, file: str | None = None) -> dict[str, TensorInfo]:
    """Read the tensors of one safetensors file on this machine, from its header alone.

    Args:
        path: the file.
        file: what the tensors' ``file`` is to say; the file's own name by default.

    Raises:
        CheckpointError: unreadable, not safetensors, truncated (declared data past the end of the file), or with
            offsets that contradict shape and dtype.
    """
    path = Path(path)
    header = read_headers(LocalFiles(path.parent), [path.name])[path.name]
    if isinstance(header, CheckpointError):
        raise header
    label = file if file is not None else path.name
    return {
        name: TensorInfo(name, info.dtype, info.shape, label, info.begin, info.end)
        for name, info in header.tensors.items()
    }


def read_headers(files: Files, names: Sequence[str]) -> dict[str, Header | CheckpointError]:
    """Read headers, by file name; a file that is truncated or not safetensors has its error instead.

    Raises:
        TransferError: the server cannot be reached.
    """
    out: dict[str, Header | CheckpointError] = {}
    read = 0
    well_begun: list[tuple[str, int, int]] = []
    firsts: dict[str, bytes] = {}
    for name, first in zip(names, files.read_many([Range(n, 0, _FIRST_READ) for n in names]), strict=True):
        try:
            if isinstance(first, Exception):
                raise first
            size = files.size(name)
            if size is None:
                raise CheckpointError(file_label(files, name), "does not exist")
            length = _header_length(file_label(files, name), first, size)
            read += length
            if read > MAX_HEADERS_BYTES:
                raise CheckpointError(
                    file_label(files, name),
                    f"has a header past {MAX_HEADERS_BYTES >> 20} MiB of headers in all; it was not read",
                )
        except TransferError:
            raise  # not the file's fault
        except CheckpointError as error:
            out[name] = error
            continue
        firsts[name] = first[8 : 8 + length]
        well_begun.append((name, length, size))
    longer = [(n, length) for n, length, _ in well_begun if length > len(firsts[n])]
    rests = files.read_many([Range(n, 8 + len(firsts[n]), length - len(firsts[n])) for n, length in longer])
    rest_by_name = {name: rest for (name, _), rest in zip(longer, rests, strict=True)}
    for name, length, size in well_begun:
        rest = rest_by_name.get(name, b"")
        try:
            if isinstance(rest, Exception):
                raise rest
            out[name] = _parse(file_label(files, name), name, firsts[name] + rest, 8 + length, size)
        except TransferError:
            raise
        except CheckpointError as error:
            out[name] = error
    return out


def _header_length(where: str, first: bytes, size: int) -> int:
    if len(first) < 8:
        raise CheckpointError(where, f"is {size} bytes long, too short for a safetensors file", remedy=_AGAIN)
    length: int = struct.unpack("<Q", first[:8])[0]
    if first.startswith(b"version https://git-lfs"):
        raise CheckpointError(
            where, "is a git-lfs pointer, not the file itself", remedy="Fetch it: git lfs pull."
        )
    if 8 + length > size:
        raise CheckpointError(
            where,
            f"declares a header of {length} bytes in a file of {size} bytes; truncated or not safetensors",
            remedy=_AGAIN,
        )
    if length > MAX_HEADER_BYTES:
        raise CheckpointError(
            where, f"declares a header of {length} bytes; more than {MAX_HEADER_BYTES} are not read"
        )
    return length


def _unique_pairs(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    out = dict(pairs)
    if len(out) != len(pairs):
        seen: set[str] = set()
        twice = next(key for key, _ in pairs if key in seen or seen.add(key))  # type: ignore[func-returns-value]
        raise ValueError(f"{twice!r} occurs twice")
    return out


def _no_constant(name: str) -> Any:
    raise ValueError(f"{name} is not JSON")


def _parse(where: str, file: str, raw: bytes, data_start: int, size: int) -> Header:
    try:
        # Strictly UTF-8: from bytes, json guesses among three encodings. It also takes NaN for a number.
        text = raw.decode("utf-8")
        header = json.loads(text, object_pairs_hook=_unique_pairs, parse_constant=_no_constant)
        if (
            "\\u" in text
        ):  # an escape may be half a surrogate pair, which the reference implementation refuses
            json.dumps(header, ensure_ascii=False).encode("utf-8")
    except (ValueError, RecursionError) as error:
        raise CheckpointError(
            where, f"has a header that is not valid JSON: {error}", remedy=_AGAIN
        ) from error
    if not isinstance(header, dict) or not raw.startswith(b"{"):
        raise CheckpointError(where, "has a header that is not a JSON object", remedy=_AGAIN)
    metadata = header.pop("__metadata__", None)
    metadata = {} if metadata is None else metadata
    if not isinstance(metadata, dict) or not all(isinstance(v, str) for v in metadata.values()):
        raise CheckpointError(where, "has __metadata__ that is not an object of strings", remedy=_AGAIN)
    tensors: dict[str, TensorInfo] = {}
    for name, entry in header.items():
        dtype, shape, begin, end = _entry(where, name, entry)
        expected = prod(shape) * DTYPE_BITS[dtype]
        if begin > end or expected != 8 * (end - begin):
            raise CheckpointError(
                where, f"tensor {name!r} spans bytes {begin}..{end}, which does not fit {dtype} {list(shape)}"
            )
        if data_start + end > size:
            raise CheckpointError(
                where,
                f"is truncated: tensor {name!r} ends at byte {data_start + end}, the file has {size}",
                remedy=_AGAIN,
            )
        tensors[name] = TensorInfo(name, dtype, shape, file, data_start + begin, data_start + end)
    _refuse_gaps(where, tensors, data_start, size)
    return Header(tensors, metadata)


def _entry(where: str, name: str, entry: Any) -> tuple[str, tuple[int, ...], int, int]:
    try:
        dtype, shape = entry["dtype"], tuple(entry["shape"])
        begin, end = entry["data_offsets"]
        numbers = (*shape, begin, end)
        # Bounded before anything is multiplied: the product of numbers with a million digits takes hours.
        well_formed = len(shape) <= _MOST_DIMENSIONS and all(
            type(n) is int and 0 <= n < 1 << 63 for n in numbers
        )
    except (KeyError, TypeError, ValueError):
        well_formed = False
    if not well_formed:
        raise CheckpointError(where, f"has a malformed header entry for tensor {name!r}", remedy=_AGAIN)
    if not isinstance(dtype, str) or dtype not in DTYPE_BITS:
        raise CheckpointError(where, f"tensor {name!r} is of the unknown dtype {dtype!r}")
    return dtype, shape, begin, end


def _refuse_gaps(where: str, tensors: Mapping[str, TensorInfo], data_start: int, size: int) -> None:
    """Refuse overlaps, gaps and trailing bytes, as the reference implementation does."""
    at, before = data_start, "the header"
    for info in sorted(tensors.values(), key=lambda i: (i.begin, i.end)):
        if info.begin != at:
            what = "overlaps" if info.begin < at else "leaves a gap after"
            raise CheckpointError(where, f"tensor {info.name!r} {what} {before!r}", remedy=_AGAIN)
        at, before = info.end, info.name
    if at != size:
        raise CheckpointError(
            where,
            f"has {size - at} bytes after its last tensor: it is not what its header says",
            remedy=_AGAIN,
        )
