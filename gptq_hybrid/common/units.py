"""Numbers with their units, for people."""

from __future__ import annotations

_GIB = 1 << 30


def size_text(count: int) -> str:
    """Write a number of bytes in GiB, or in MiB below one of those, with one decimal."""
    return f"{count / _GIB:.1f} GiB" if count >= _GIB else f"{count / (1 << 20):.1f} MiB"


def duration_text(seconds: float) -> str:
    """Write a time in the two units that matter: ``8 s``, ``3 min 20 s``, ``5 h 10 min``."""
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    minutes, rest = divmod(whole, 60)
    if minutes < 60:
        return f"{minutes} min {rest} s" if rest and minutes < 10 else f"{minutes} min"
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes} min" if minutes else f"{hours} h"


def range_text(first: int, last: int) -> str:
    """Return a range of whole numbers for people: ``3 to 5``, or ``3`` if it is one."""
    return f"{first} to {last}" if first < last else str(first)
