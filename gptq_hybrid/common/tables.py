"""The look of all tables, and text that is safe to print."""

from __future__ import annotations

from rich.box import SIMPLE_HEAD
from rich.markup import escape
from rich.table import Table

from .text import printable


def report_table(title: str, caption: str, *, padding: int | tuple[int, int] = (0, 1)) -> Table:
    """Return an empty table with a rule below its head.

    Args:
        padding: rich's cell padding; 0 for a table with many columns.
    """
    return Table(
        title=plain(title),
        caption=plain(caption),
        title_justify="left",
        caption_justify="left",
        title_style="bold",
        box=SIMPLE_HEAD,
        pad_edge=False,
        padding=padding,
    )


def plain(text: str) -> str:
    """Make text from a checkpoint safe to print: no markup, and no control character that moves the cursor."""
    return escape(printable(text))
