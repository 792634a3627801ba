"""Check where a command is going to write, before it spends time."""

from __future__ import annotations

import os
from pathlib import Path

from .errors import HybridError


def refuse_unwritable(option: str, path: Path | None) -> None:
    """Refuse an output file that cannot be written.

    Args:
        option: the command-line option that names the file, for messages.
        path: the file; None for no output, which always passes.

    Raises:
        HybridError: ``path`` is a folder, or its folder is not writable.
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
