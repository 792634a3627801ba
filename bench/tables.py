"""Markdown tables of results: one engine for every page.

A table is its columns, its rows and a caption. A `Column` says where a cell's value lies in a row (a key, a path of
keys, or a function of the row) and how it is written (a format or a function of the value). A value that is missing
gives an empty cell. Columns are a list, so columns that depend on the results are a comprehension:

    table(
        [Column("tokens", "m"), *(Column(route, ("us", route), ".1f") for route in ("stock", "exact", "fp8"))],
        result["rows"],
        f"{where(result['environment'])}; µs a call",
    )

A column may also be just a title; its cells are then the rows' members at its position, already written:
``table(["what", "s"], [["start", "41"]])``.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from bench.results import Json

_MINUS = str.maketrans("-", "−")


@dataclass(frozen=True, slots=True)
class Column:
    """Title, where a row's value lies (key, path of keys or function), and the format of the value."""

    title: str
    value: str | tuple[str, ...] | Callable[[Any], Any]
    format: str | Callable[[Any], str] = ""

    def cell(self, row: Any) -> str:
        """The row's value, written; "" where it is missing or None."""
        value = self.value(row) if callable(self.value) else at(row, self.value)
        if value is None:
            return ""
        return self.format(value) if callable(self.format) else format(value, self.format)


def at(tree: Any, path: str | tuple[str, ...]) -> Any:
    """The value under a key or a path of keys; None where one of them is missing."""
    for key in (path,) if isinstance(path, str) else path:
        if not isinstance(tree, Mapping) or key not in tree:
            return None
        tree = tree[key]
    return tree


def table(columns: Sequence[Column | str], rows: Iterable[Any], caption: str = "") -> str:
    """Markdown; the first column to the left, the others to the right; the caption in a paragraph below."""
    titles = [column if isinstance(column, str) else column.title for column in columns]
    cells = [titles]
    for row in rows:
        cells.append([row[i] if isinstance(c, str) else c.cell(row) for i, c in enumerate(columns)])
    head, *lines = ("| " + " | ".join(line) + " |" for line in cells)
    body = "\n".join([head, "|---" + "|---:" * (len(titles) - 1) + "|", *lines])
    return f"{body}\n\n{caption}." if caption else body


def where(environment: Json) -> str:
    """Card and versions, in a line."""
    versions = [f"{name} {environment[name]}" for name in ("vllm", "torch", "python") if name in environment]
    return f"{environment['device']}, {', '.join(versions)}"


def number(value: float, spec: str) -> str:
    """A number with a minus sign that is one, and no minus before zero."""
    return format(value, spec.replace("+", "+z", 1) if "+" in spec else f"z{spec}").translate(_MINUS)


def interval(estimate: Mapping[str, float | None], spec: str, factor: float = 1.0) -> str:
    """``value [low, high]`` in units of 1 / ``factor``; the value alone where it has no interval."""
    value, low, high = (estimate[end] for end in ("value", "low", "high"))
    if value is None:
        return ""
    written = number(value * factor, spec)
    if low is None or high is None:
        return written
    return f"{written} [{number(low * factor, spec)}, {number(high * factor, spec)}]"
