"""One reader for every file of somebody else's that is read at a start: bounded, never blocking, clear about it.

A device, a pipe or a file of holes would otherwise fill the memory, or hang a server.
"""

from __future__ import annotations

import json
import os
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from .errors import CheckpointError

# The largest such file is a tokenizer, of 20 MB.
MOST_BYTES = 64 << 20


@contextmanager
def opened(path: Path) -> Iterator[int]:
    """Yield a descriptor of a regular file, opened to be read.

    Raises:
        CheckpointError: there is no such file, it is a device, pipe or folder, or reading it fails.
    """
    try:
        # Not blocking: whoever opens a pipe would wait for its other end.
        descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    except (FileNotFoundError, ValueError) as error:
        raise CheckpointError(path, "does not exist") from error
    except OSError as error:
        raise CheckpointError(path, f"cannot be read: {error.strerror or error}") from error
    try:
        if not stat.S_ISREG(os.fstat(descriptor).st_mode):
            raise CheckpointError(path, "is no file, but a device, pipe or folder, which is not read")
        yield descriptor
    except OSError as error:
        raise CheckpointError(path, f"cannot be read: {error.strerror or error}") from error
    finally:
        os.close(descriptor)


def read_range(descriptor: int, begin: int, count: int) -> bytes:
    """Return ``count`` bytes of an open file from its byte ``begin`` on; fewer where it ends before them."""
    # One read returns at most 2 GiB on Linux, and may return less anywhere.
    pieces: list[bytes] = []
    while count > 0 and (piece := os.pread(descriptor, min(count, 1 << 28), begin)):
        pieces.append(piece)
        begin += len(piece)
        count -= len(piece)
    return pieces[0] if len(pieces) == 1 else b"".join(pieces)


def read_small_file(path: Path, *, most: int = MOST_BYTES) -> bytes:
    """Return the bytes of a regular file of at most ``most`` bytes.

    Raises:
        CheckpointError: as :func:`opened`, or the file is larger.
    """
    with opened(path) as descriptor:
        if os.fstat(descriptor).st_size > most:
            raise CheckpointError(path, f"is larger than {most >> 20} MiB, and was not read")
        return read_range(descriptor, 0, most)


def parse_json(raw: bytes, where: str | Path) -> Any:
    """Parse JSON in UTF-8; ``where`` names its file in messages.

    Raises:
        CheckpointError: not JSON, or nested too deeply.
    """
    try:
        # Strictly UTF-8, as transformers and vLLM read it: from bytes, json guesses among three encodings.
        return json.loads(raw.decode("utf-8"))
    except RecursionError as error:
        raise CheckpointError(where, "is not valid JSON that can be read: it is nested too deeply") from error
    except ValueError as error:
        raise CheckpointError(where, f"is not valid JSON: {error}") from error


def read_json(path: Path, *, most: int = MOST_BYTES) -> Any:
    """Return what a small JSON file holds.

    Raises:
        CheckpointError: as :func:`read_small_file` and :func:`parse_json`.
    """
    return parse_json(read_small_file(path, most=most), path)
