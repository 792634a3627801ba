"""Check where a command is to write, before it costs time."""

from __future__ import annotations

import os
from pathlib import Path

from .errors import HybridError


def refuse_unwritable(option: str, path: Path | None) -> None:
    """Refuse a file that cannot be written; None is no file.

    Args:
        option: the command-line option that names it, for messages.

    Raises:
        HybridError: it is a folder, or lies where nothing can be written.
    """
    if path is None:
        return
    if path.is_dir():
        raise HybridError(f"{path} is a folder", remedy=f"Give the name of a file with {option}.")
    place = path.absolute().parent
    while not place.exists():
        place = place.parent
    if not place.is_dir() or not os.access(place, os.W_OK | os.X_OK):
        raise HybridError(f"{path} cannot be written", remedy=f"Give another place with {option}.")
