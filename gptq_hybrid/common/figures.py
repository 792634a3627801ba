"""What pictures share: colours, markers, text, and saving a file whole."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any
from uuid import uuid4

from .atomic import fsync_path

# Okabe & Ito (2008): told apart with every common colour blindness; markers repeat the distinction.
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9")
MARKERS = ("o", "s", "^", "D", "v", "P")


def text(name: str) -> str:
    """Escape what matplotlib would take for a formula in the name of a folder."""
    return name.replace("$", r"\$")


def save(figure: Any, path: Path) -> None:
    """Write a matplotlib figure as a PNG file, which appears only once it is whole."""
    temporary = path.with_name(f".{path.name}.{uuid4().hex[:8]}.tmp")
    try:
        with temporary.open("wb") as handle:
            figure.savefig(handle, format="png", dpi=130)
            handle.flush()
            os.fsync(handle.fileno())
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)
    fsync_path(path.parent)
