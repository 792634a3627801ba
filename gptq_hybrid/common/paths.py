"""Paths as people give them: text or ``Path``."""

from __future__ import annotations

from pathlib import Path
from typing import Any


def keep_paths(instance: Any, *names: str) -> None:
    """Turn fields of a frozen dataclass into ``Path``s, in its ``__post_init__``; None stays."""
    for name in names:
        value = getattr(instance, name)
        if isinstance(value, str):
            object.__setattr__(instance, name, Path(value))
        elif isinstance(value, (tuple, list)):
            object.__setattr__(instance, name, tuple(Path(item) for item in value))
