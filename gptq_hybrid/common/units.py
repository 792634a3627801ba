"""Numbers with their units, for people."""

from __future__ import annotations

_GIB = 1 << 30


def size_text(count: int) -> str:
    """Write a number of bytes in GiB, or in MiB below one of those, with one decimal."""
    return f"{count / _GIB:.1f} GiB" if count >= _GIB else f"{count / (1 << 20):.1f} MiB"
