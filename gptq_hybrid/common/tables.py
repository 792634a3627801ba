"""How this package's tables look."""

from __future__ import annotations

from rich.box import SIMPLE_HEAD
from rich.markup import escape
from rich.table import Table


def report_table(title: str, caption: str, *, padding: int | tuple[int, int] = (0, 1)) -> Table:
    """An empty table with a rule below its head; ``padding`` as rich has it, 0 where columns are many."""
    return Table(
        title=escape(title),
        caption=escape(caption),
        title_justify="left",
        caption_justify="left",
        title_style="bold",
        box=SIMPLE_HEAD,
        pad_edge=False,
        padding=padding,
    )


def plain(text: str) -> str:
    """Text of a checkpoint, safe to print: no markup, and no control character to move the cursor with."""
    return escape("".join(c if c.isprintable() or c == "\n" else repr(c)[1:-1] for c in text))
