"""A checkpoint folder on this machine."""

from __future__ import annotations

import os
import stat
from collections.abc import Sequence
from functools import cached_property
from pathlib import Path

from gptq_hybrid.common.errors import CheckpointError

from ._base import Range, Reads, leads_out


class LocalFiles:
    """The files of a folder.

    With ``follow_links=False``, symbolic links that lead out of the folder are refused, except those of a Hugging
    Face cache snapshot into its own ``blobs``. Pass True for a folder of links that its loader follows anyway.
    """

    far = False

    def __init__(self, folder: Path, *, follow_links: bool = True) -> None:
        self.folder: Path | None = folder
        self.location = str(folder)
        self.reads = Reads()
        self._path = folder
        self._follow = follow_links
        self._refusals: dict[str, str | None] = {}

    @cached_property
    def _roots(self) -> tuple[Path, ...]:
        """Where a link may lead: the folder itself, and the blobs of the cache it is a snapshot of."""
        real = self._path.resolve()
        in_cache = real.parent.name == "snapshots"
        return (real, real.parent.parent / "blobs") if in_cache else (real,)

    def names(self) -> tuple[str, ...] | None:
        try:
            with os.scandir(self._path) as entries:
                return tuple(sorted(entry.name for entry in entries if _is_file(entry)))
        except OSError as error:
            raise CheckpointError(self._path, f"cannot be listed: {error.strerror or error}") from error

    def refusal(self, name: str) -> str | None:
        if name not in self._refusals:
            self._refusals[name] = self._find_refusal(name)
        return self._refusals[name]

    def _find_refusal(self, name: str) -> str | None:
        if leads_out(name):
            return "leads out of the checkpoint folder"
        path = self._path / name
        if self._follow or not self._has_link(path):
            return None
        try:
            real = path.resolve()
        except (OSError, RuntimeError):  # a loop of links
            return "is a symbolic link that leads nowhere"
        if any(real.is_relative_to(root) for root in self._roots):
            return None
        return "is a symbolic link out of the checkpoint folder"

    def _has_link(self, path: Path) -> bool:
        try:
            while path != self._path:
                if path.is_symlink():
                    return True
                path = path.parent
        except OSError:  # a name too long to exist
            return False
        return False

    def size(self, name: str) -> int | None:
        if self.refusal(name) is not None:
            return None
        try:
            status = (self._path / name).stat()
        except (OSError, ValueError):
            return None
        # A pipe or a device would block, or never end.
        return status.st_size if stat.S_ISREG(status.st_mode) else None

    def read(self, part: Range) -> bytes:
        path = self._path / part.name
        refusal = self.refusal(part.name)
        if refusal is not None:
            raise CheckpointError(path, refusal)
        try:
            if not stat.S_ISREG(path.stat().st_mode):
                raise FileNotFoundError
            with path.open("rb", buffering=0) as handle:
                left = os.fstat(handle.fileno()).st_size - part.begin
                left = left if part.count is None else min(left, part.count)
                handle.seek(part.begin)
                data = _read_all(handle.fileno(), left)
        except FileNotFoundError as error:
            raise CheckpointError(path, "does not exist") from error
        except OSError as error:
            raise CheckpointError(path, f"cannot be read: {error.strerror or error}") from error
        self.reads.note(len(data))
        return data

    def read_many(self, parts: Sequence[Range]) -> list[bytes | Exception]:
        out: list[bytes | Exception] = []
        for part in parts:
            try:
                out.append(self.read(part))
            except CheckpointError as error:
                out.append(error)
        return out


def _is_file(entry: os.DirEntry[str]) -> bool:
    try:
        return entry.is_file()
    except OSError:  # a loop of links
        return False


def _read_all(descriptor: int, count: int) -> bytes:
    # One read() returns at most 2 GiB on Linux, and may return less anywhere.
    pieces: list[bytes] = []
    while count > 0 and (piece := os.read(descriptor, min(count, 1 << 28))):
        pieces.append(piece)
        count -= len(piece)
    return pieces[0] if len(pieces) == 1 else b"".join(pieces)
