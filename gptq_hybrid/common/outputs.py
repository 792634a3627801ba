"""Check where a command is going to write, before it spends time."""

from __future__ import annotations

import tempfile
from pathlib import Path

from .errors import HybridError


def refuse_unwritable(option: str, path: str | Path | None) -> None:
    """Refuse an output file that cannot be written.

    Args:
        option: the command-line option that names the file, for messages.
        path: the file; None for no output, which always passes.

    Raises:
        HybridError: ``path`` is a folder, or its folder is absent or not writable.
    """
    if path is None:
        return
    path = Path(path)
    if path.is_dir():
        raise HybridError(f"{path} is a folder", remedy=f"Give the name of a file with {option}.")
    folder = path.absolute().parent
    if not folder.exists():
        raise HybridError(
            f"{path} cannot be written: there is no folder {folder}",
            remedy=f"Make it first, or give another place with {option}.",
        )
    if reason := _why_not(folder):
        raise HybridError(f"{path} cannot be written: {reason}", remedy=f"Give another place with {option}.")


def refuse_unwritable_folder(option: str, folder: str | Path) -> None:
    """Refuse an output folder that cannot be made, or written into.

    Args:
        option: the command-line option or argument that names the folder, for messages.
        folder: the folder; it and those above it may be absent.

    Raises:
        HybridError: it, or the nearest folder above it that exists, is a file or not writable.
    """
    place = Path(folder).absolute()
    while not place.exists():
        place = place.parent
    if reason := _why_not(place):
        raise HybridError(f"{folder} cannot be written: {reason}", remedy=f"Give another folder: {option}")


def _why_not(folder: Path) -> str | None:
    """Why no file can be made in ``folder``; None if one can.

    Permissions alone do not tell: root passes them on a file system that refuses it.
    """
    if not folder.is_dir():
        return f"{folder} is a file, not a folder"
    try:
        # Where the system can, a file that has no name.
        with tempfile.TemporaryFile(dir=folder):
            return None
    except OSError as error:
        return f"{error.strerror or error} ({folder})"
