"""The look of all tables, and text that is safe to print."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import replace
from typing import Any

from rich.box import SIMPLE_HEAD
from rich.console import Console, ConsoleOptions, RenderResult
from rich.segment import Segment
from rich.table import Table
from rich.text import Text

from .terminal import plain

__all__ = ["ReportTable", "plain", "report_table"]

# Off a terminal a cell is never folded, so a table may be as wide as a paragraph; its rule need not be.
_LONGEST_RULE = 100


class ReportTable(Table):
    """A table whose title and caption are lines of their own, and whose columns of numbers are never narrowed.

    A column that is not to be narrowed is made with ``no_wrap=True``; one that is justified to the right is so by
    itself. Where the terminal has too few columns even so, the lines are longer than it, and it breaks them.
    """

    caption_line: str = ""
    title_line: str = ""

    def add_column(self, *args: Any, **options: Any) -> None:
        """Add a column as rich does; a column of numbers is not narrowed unless ``no_wrap=False`` says so."""
        if options.get("justify") == "right":
            options.setdefault("no_wrap", True)
        super().add_column(*args, **options)

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        fold = options if console.is_terminal else options.update(no_wrap=True, overflow="ignore")
        if self.title_line:
            yield from console.render(Text(self.title_line, style="bold"), fold)
        needed = self._least_width(console, options)
        width = max(options.max_width, needed)
        table = super().__rich_console__(console, replace(options, max_width=width))
        yield from table if console.is_terminal else _for_pipes(table)
        if self.caption_line:
            yield from console.render(Text(self.caption_line, style="dim"), fold)

    def _least_width(self, console: Console, options: ConsoleOptions) -> int:
        """Columns that the table takes with every column that may be narrowed at its narrowest."""
        wide = replace(options, max_width=10_000)
        return self.__rich_measure__(console, wide).minimum


def _for_pipes(rendered: Iterable[Any]) -> Iterator[Segment]:
    """The lines of a table without blanks at their ends, and without a rule that is longer than any screen."""
    for line in Segment.split_lines(rendered):
        text = "".join(segment.text for segment in line).rstrip()
        left = min(len(text), _LONGEST_RULE) if text.strip("─") == "" else len(text)
        for segment in line:
            yield segment._replace(text=segment.text[:left])
            left = max(left - len(segment.text), 0)
        yield Segment.line()


def report_table(title: str, caption: str, *, padding: int | tuple[int, int] = (0, 1)) -> ReportTable:
    """Return an empty table with a rule below its head, a title before it and a caption after it.

    Args:
        title: the line above, as it is; ``""`` for none.
        caption: the line below.
        padding: rich's cell padding; 0 for a table with many columns.
    """
    table = ReportTable(box=SIMPLE_HEAD, show_edge=False, pad_edge=False, padding=padding)
    table.title_line, table.caption_line = title, caption
    return table
