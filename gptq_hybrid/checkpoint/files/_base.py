"""What reading a checkpoint asks of the place its files lie in."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Protocol


@dataclass(frozen=True, slots=True)
class Range:
    """``count`` bytes of the file ``name`` from ``begin`` on; to the file's end where ``count`` is None."""

    name: str
    begin: int = 0
    count: int | None = None


@dataclass(slots=True)
class Reads:
    """What was read so far: bytes of file content, and the reads (over HTTP: requests) that took."""

    bytes: int = 0
    requests: int = 0

    def note(self, count: int) -> None:
        self.bytes += count
        self.requests += 1


class Files(Protocol):
    """A flat set of named files. ``name`` is relative to the checkpoint, with ``/`` between parts.

    location: what to call the place in messages and on a ``vllm serve`` line.
    folder: its local folder, or None.
    far: reads cost a round trip each, so rules sample instead of reading thousands of small ranges.
    """

    location: str
    folder: Path | None
    far: bool
    reads: Reads

    def names(self) -> tuple[str, ...] | None:
        """Names of all files at the top level, sorted; None where the place cannot be listed."""

    def size(self, name: str) -> int | None:
        """Size in bytes; None where there is no such file (or :meth:`refusal` applies)."""

    def refusal(self, name: str) -> str | None:
        """Why ``name`` is not looked at although an index may name it: it leads out of the checkpoint."""

    def read(self, part: Range) -> bytes:
        """The bytes of one range; fewer where the file ends before it.

        Raises:
            CheckpointError: no such file, not readable, or refused.
        """

    def read_many(self, parts: Sequence[Range]) -> list[bytes | Exception]:
        """Several ranges, in order; a range that fails yields its CheckpointError in place of bytes."""


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
