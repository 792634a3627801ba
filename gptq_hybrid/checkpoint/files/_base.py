"""The interface to the place where a checkpoint's files lie."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Protocol


@dataclass(frozen=True, slots=True)
class Range:
    """``count`` bytes of the file ``name`` from ``begin`` on; up to the file's end where ``count`` is None."""

    name: str
    begin: int = 0
    count: int | None = None


@dataclass(slots=True)
class Reads:
    """Bytes of file content read so far, and the number of reads (over HTTP: of requests)."""

    bytes: int = 0
    requests: int = 0

    def note(self, count: int) -> None:
        """Count one read of ``count`` bytes."""
        self.bytes += count
        self.requests += 1


class Files(Protocol):
    """A flat set of named files. A name is relative to the checkpoint, with ``/`` between its parts.

    Attributes:
        location: the name of the place in messages and on a ``vllm serve`` line.
        folder: its local folder, or None.
        far: a read costs a round trip, so rules sample instead of reading thousands of small ranges.
        reads: what was read so far.
    """

    location: str
    folder: Path | None
    far: bool
    reads: Reads

    def names(self) -> tuple[str, ...] | None:
        """Names of all files at the top level, sorted; None where the place cannot be listed."""

    def size(self, name: str) -> int | None:
        """Size in bytes; None if there is no such file or :meth:`refusal` applies."""

    def refusal(self, name: str) -> str | None:
        """Why ``name`` is never opened although an index may name it; None for a name within the checkpoint."""

    def read(self, part: Range) -> bytes:
        """Return the bytes of one range; fewer where the file ends before it.

        Raises:
            CheckpointError: the file is absent, not readable, or refused.
        """

    def read_many(self, parts: Sequence[Range]) -> list[bytes | Exception]:
        """Read several ranges, in order; a range that fails yields its CheckpointError in place of bytes."""

    def digest(self, name: str) -> str | None:
        """SHA-256 of a whole file as its publisher declares it, in hexadecimal; None where nobody does."""


def file_label(files: Files, name: str) -> str:
    """Path or address of one file, for messages."""
    return f"{files.location.rstrip('/')}/{name}"


def leads_out(name: str) -> bool:
    """Whether a file name, as text, is absolute or climbs out of its folder."""
    path = PurePosixPath(name)
    return (
        not path.parts
        or "\0" in name
        or "\\" in name
        or path.is_absolute()
        or ".." in path.parts
        or "//" in name
        or ":" in path.parts[0]
    )
