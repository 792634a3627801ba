"""Tell a full disk or a read-only target from a mistake of the program, whichever library ran into it."""

from __future__ import annotations

import errno
import os
import shutil
from pathlib import Path

from .units import size_text

_OF_THE_PLACE = (
    errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS, errno.EACCES, errno.EPERM, errno.EIO, errno.ENOTDIR,
)  # fmt: skip
# What torch.save says of a write that came up short; it drops the system's reason.
_TORCH = ("PytorchStreamWriter failed", "inline_container.cc", "iostream error")


def writing_trouble(error: BaseException) -> str | None:
    """Return why a file could not be written, if that is what ended in ``error``; None for any other error.

    Libraries in Rust and C++ raise errors of their own with the system's words in them, and others wrap those.
    """
    seen: set[int] = set()
    current: BaseException | None = error
    while current is not None and id(current) not in seen:
        seen.add(id(current))
        text = str(current)
        if isinstance(current, OSError) and current.errno in _OF_THE_PLACE:
            reason = os.strerror(current.errno)
            return f"{current.filename}: {reason}" if current.filename else reason
        for number in _OF_THE_PLACE:
            if f"(os error {number})" in text or os.strerror(number) in text:
                return os.strerror(number)
        if any(said in text for said in _TORCH):
            return "a file could not be written whole"
        current = current.__cause__ or current.__context__
    return None


def room_text(*folders: Path) -> str:
    """Say how much room there is in the folders, or in the nearest that exist above them."""
    said = {}
    for folder in folders:
        place = folder.absolute()
        while not place.exists() and place != place.parent:
            place = place.parent
        try:
            said[str(place)] = size_text(shutil.disk_usage(place).free)
        except OSError:
            said[str(place)] = "nothing that can be asked for"
    return ", ".join(f"{place} has {free} free" for place, free in said.items())
