"""Text from elsewhere (file names, tensor names, options) made safe to print."""

from __future__ import annotations


def printable(text: str, *, lines: bool = True) -> str:
    """Return text without characters that move a cursor, colour a terminal or turn the direction of writing.

    Each is shown as Python would spell it: ``\\x1b``. With ``lines=False`` line breaks are, too, so that a name
    cannot pretend to be a line of its own.
    """
    return "".join(c if c.isprintable() or (lines and c == "\n") else repr(c)[1:-1] for c in text)
