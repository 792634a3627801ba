"""Read every byte of a checkpoint: what a check in samples cannot see, and the SHA-256 of each file."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from hashlib import sha256

from gptq_hybrid.checkpoint import Checkpoint
from gptq_hybrid.checkpoint.files import Range
from gptq_hybrid.common.errors import CheckpointError

from .values import Scan, Values

_CHUNK = 16 << 20
# Over a network: a request may take 30 s, in which 4 MiB arrive over a line of 1.2 Mbit/s. Eight go at once.
_FAR_CHUNK, _FAR_AT_ONCE = 4 << 20, 8
Progress = Callable[[int, int], None]


@dataclass(frozen=True, slots=True)
class DeepReading:
    """What a whole reading came to.

    Attributes:
        values: of every tensor that a loader reads, by file and name.
        digests: SHA-256 of every file that a loader reads, in hexadecimal.
    """

    values: Mapping[tuple[str, str], Values]
    digests: Mapping[str, str]


def read_deeply(checkpoint: Checkpoint, progress: Progress | None = None) -> DeepReading:
    """Read all files whose headers are in order, each once and from its beginning.

    Args:
        checkpoint: what to read.
        progress: called with bytes done and bytes in all.

    Raises:
        CheckpointError: a file ended early, or cannot be read.
    """
    checkpoint.read_all_headers()
    names = [name for name in checkpoint.referenced if name in checkpoint.headers]
    total, done = sum(checkpoint.files.size(name) or 0 for name in names), 0
    values: dict[tuple[str, str], Values] = {}
    digests: dict[str, str] = {}
    for name in names:
        digest = sha256()
        # In the order of their bytes; a header with gaps or overlaps was refused.
        infos = sorted(checkpoint.headers[name].tensors.values(), key=lambda info: (info.begin, info.end))
        ends = [infos[0].begin if infos else checkpoint.files.size(name) or 0, *(info.end for info in infos)]
        begin = 0
        for info, end in zip([None, *infos], ends, strict=True):
            scan = None if info is None else Scan(info.dtype)
            for piece in _pieces(checkpoint, name, begin, end):
                digest.update(piece)
                if scan is not None:
                    scan.add(piece)
                done += len(piece)
                if progress is not None:
                    progress(done, total)
            if info is not None and scan is not None:
                values[name, info.name] = scan.values
            begin = end
        digests[name] = digest.hexdigest()
    return DeepReading(values, digests)


def _pieces(checkpoint: Checkpoint, name: str, begin: int, end: int) -> Iterator[bytes]:
    far = checkpoint.files.far
    chunk = _FAR_CHUNK if far else _CHUNK
    starts = range(begin, end, chunk)
    at_once = _FAR_AT_ONCE if far else 1
    for first in range(0, len(starts), at_once):
        parts = [Range(name, at, min(chunk, end - at)) for at in starts[first : first + at_once]]
        for part, piece in zip(parts, checkpoint.files.read_many(parts), strict=True):
            if isinstance(piece, Exception):
                raise piece
            if len(piece) != part.count:
                raise CheckpointError(
                    name, "ended while it was read", remedy="Download or copy this file again."
                )
            yield piece
