"""Make a note, from whatever process of a server."""

from __future__ import annotations

import os
from contextlib import suppress
from pathlib import Path

from .notes import FILE, Note, append, keep

MULTIPROCESS = "PROMETHEUS_MULTIPROC_DIR"
# What a label may hold; a line of routes for all shapes of a 27B has 400 characters.
_MOST_TEXT = 1000


def note(path: str, state: str, detail: object = "") -> None:
    """Note what became of a path; a later note on the same path counts. Never raises."""
    made = Note(path, state, str(detail)[:_MOST_TEXT])
    keep(made)
    with suppress(Exception):  # a note is no reason to disturb a server
        if os.environ.get(MULTIPROCESS):
            from .gauges import set_path

            set_path(made)
        elif name := os.environ.get(FILE):
            append(made, Path(name))
