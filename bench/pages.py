"""A README whose tables stand between markers and are written from results.

<!-- table: NAME -->
…
<!-- end -->
"""

from __future__ import annotations

import argparse
import re
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bench.results import Json, load

_BLOCK = re.compile(r"<!-- table: (\S+) -->\n(.*?)<!-- end -->", re.DOTALL)


@dataclass(frozen=True, slots=True)
class Page:
    """``tables``: by marker, the file of the results and what draws them. ``draw``: the picture of one file's."""

    readme: Path
    tables: Mapping[str, tuple[Path, Callable[[Json], str]]]
    picture: Path
    drawn_from: Path
    draw: Callable[[Json], Any]

    def results(self) -> dict[Path, Json | None]:
        """All that the tables are made from; None where nothing was measured yet."""
        return {path: load(path) for path in (*(path for path, _ in self.tables.values()), self.drawn_from)}

    def filled(self, text: str, results: Mapping[Path, Json | None]) -> str:
        """``text`` with every table between its markers.

        Raises:
            ValueError: a marker names no table, or a table has no marker.
        """
        names = [match[1] for match in _BLOCK.finditer(text)]
        if sorted(names) != sorted(self.tables):
            raise ValueError(
                f"README.md has markers for {sorted(names)}, there are tables {sorted(self.tables)}"
            )

        def block(match: re.Match[str]) -> str:
            path, table = self.tables[match[1]]
            result = results[path]
            body = "Not measured yet." if result is None else table(result)
            return f"<!-- table: {match[1]} -->\n{body}\n<!-- end -->"

        return _BLOCK.sub(block, text)

    def main(self, module: str, description: str | None) -> None:
        """The command line of ``python -m module``."""
        parser = argparse.ArgumentParser(
            description=description, formatter_class=argparse.RawDescriptionHelpFormatter
        )
        parser.add_argument(
            "--check", action="store_true", help="write nothing; exit 1 if the README is stale"
        )
        parser.add_argument("--no-picture", action="store_true")
        args = parser.parse_args()
        results = self.results()
        current = self.readme.read_text(encoding="utf-8")
        text = self.filled(current, results)
        if args.check:
            if text != current:
                sys.exit(f"README.md does not hold the tables of the results: run python -m {module}")
            return
        from gptq_hybrid.checkpoint._atomic import write_text_atomic

        write_text_atomic(self.readme, text)
        drawn = results[self.drawn_from]
        if drawn and not args.no_picture:
            self.draw(drawn).savefig(self.picture, dpi=120, metadata={"Software": None})
