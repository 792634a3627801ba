"""A checkpoint folder on this machine."""

from __future__ import annotations

import os
import re
import stat
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import cached_property
from itertools import groupby
from operator import attrgetter
from pathlib import Path

from gptq_hybrid.common.errors import CheckpointError
from gptq_hybrid.common.small_files import opened, read_range

from ._base import Range, Reads, leads_out

_SHA256 = re.compile(r"[0-9a-f]{64}")


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
        with self._opened(part.name) as descriptor:
            return self._part(descriptor, part)

    def read_many(self, parts: Sequence[Range]) -> list[bytes | Exception]:
        out: list[bytes | Exception] = []
        # A file is opened once for all of its parts that stand together.
        for name, together in groupby(parts, key=attrgetter("name")):
            done, wanted = len(out), list(together)
            try:
                with self._opened(name) as descriptor:
                    out += [self._part(descriptor, part) for part in wanted]
            except CheckpointError as error:
                out[done:] = [error] * len(wanted)
        return out

    @contextmanager
    def _opened(self, name: str) -> Iterator[int]:
        path = self._path / name
        refusal = self.refusal(name)
        if refusal is not None:
            raise CheckpointError(path, refusal)
        with opened(path) as descriptor:
            yield descriptor

    def _part(self, descriptor: int, part: Range) -> bytes:
        left = os.fstat(descriptor).st_size - part.begin
        data = read_range(descriptor, part.begin, left if part.count is None else min(left, part.count))
        self.reads.note(len(data))
        return data

    def digest(self, name: str) -> str | None:
        """SHA-256 of the file as the hub it was downloaded from has it; None where nothing tells it.

        The cache of huggingface_hub names its files by it, and ``hf download --local-dir`` writes it down. A note
        that is older than the file is about another.
        """
        path = self._path / name
        if path.is_symlink() and _SHA256.fullmatch(blob := path.readlink().name):
            return blob
        note = self._path / ".cache" / "huggingface" / "download" / f"{name}.metadata"
        try:
            _, etag, when = note.read_text(encoding="utf-8").split()[:3]
            current = path.stat().st_mtime - 1 <= float(when)
        except (OSError, ValueError):
            return None
        return etag if current and _SHA256.fullmatch(etag) else None


def _is_file(entry: os.DirEntry[str]) -> bool:
    try:
        return entry.is_file()
    except OSError:  # a loop of links
        return False
