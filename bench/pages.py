"""Write the tables and pictures of the pages from the results beside them.

    python -m bench.pages [ROOM ...] [--check] [--no-pictures]

A room is a folder of bench/. Its ``report.py`` holds one ``PAGE``, which says what stands between the markers of
the room's README.md: by name, a function and the JSON files it is called with.

    PAGE = Page(
        HERE / "README.md",
        tables={"decode": (decode_table, HERE / "engine.json"), "both": (compare, HERE / "a.json", B)},
        pictures={"engine.png": (draw, HERE / "engine.json")},   # draw(result) gives a matplotlib Figure
    )

In README.md a table stands between ``<!-- table: decode -->`` and ``<!-- end -->``. `tests/bench/test_pages.py`
holds every page against its results, and every result against the pages: a result that no page reads must be linked
from one.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from importlib import import_module
from pathlib import Path
from typing import Any

from bench.arguments import command_line
from bench.results import load

HERE = Path(__file__).parent
# A function of results, and the files they are read from.
Source = tuple[Any, ...]
_BLOCK = re.compile(r"<!-- table: (\S+) -->\n(.*?)<!-- end -->", re.DOTALL)


@dataclass(frozen=True, slots=True)
class Page:
    """A page, its tables by marker and its pictures by file name."""

    readme: Path
    tables: Mapping[str, Source]
    pictures: Mapping[str, Source] = field(default_factory=dict)

    def files(self) -> set[Path]:
        """Every result that the page is made from."""
        return {file for _, *files in (*self.tables.values(), *self.pictures.values()) for file in files}

    def filled(self, text: str) -> str:
        """``text`` with every table between its markers.

        Raises:
            ValueError: a marker names no table, or a table has no marker.
            FileNotFoundError: a result is missing.
        """
        names = [match[1] for match in _BLOCK.finditer(text)]
        if sorted(names) != sorted(self.tables):
            raise ValueError(f"{self.readme}: markers for {sorted(names)}, tables {sorted(self.tables)}")
        return _BLOCK.sub(
            lambda match: f"<!-- table: {match[1]} -->\n{_made(self.tables[match[1]])}\n<!-- end -->", text
        )

    def draw(self) -> None:
        """Write the pictures beside the page."""
        for name, source in self.pictures.items():
            _made(source).savefig(self.readme.with_name(name), dpi=120, metadata={"Software": None})


def _made(source: Source) -> Any:
    function: Callable[..., Any]
    function, *files = source
    results = [load(file) for file in files]
    for file, result in zip(files, results, strict=True):
        if result is None:
            raise FileNotFoundError(f"{file}: not measured yet")
    return function(*results)


def rooms() -> list[str]:
    """Folders of bench/ that have a page to write."""
    return sorted(path.parent.name for path in HERE.glob("*/report.py"))


def page(room: str) -> Page:
    """The page of a room."""
    made: Page = import_module(f"bench.{room}.report").PAGE
    return made


def main() -> None:
    """Command line."""
    parser = command_line(__doc__)
    parser.add_argument("rooms", nargs="*", metavar="ROOM", help="all, if none is named")
    parser.add_argument("--check", action="store_true", help="write nothing; exit 1 if a page is stale")
    parser.add_argument("--no-pictures", action="store_true")
    args = parser.parse_args()
    stale = []
    for room in args.rooms or rooms():
        one = page(room)
        current = one.readme.read_text(encoding="utf-8")
        text = one.filled(current)
        if args.check:
            stale += [room] if text != current else []
            continue
        from gptq_hybrid.common.atomic import write_text_atomic

        write_text_atomic(one.readme, text)
        if not args.no_pictures:
            one.draw()
    if stale:
        sys.exit(f"pages that do not hold what their results give: {', '.join(stale)}")


if __name__ == "__main__":
    main()
