"""Tables and pictures of the experiments, from `results.json`.

    python -m bench.quality.report [--check] [--no-pictures]

Puts the tables between the markers of README.md and draws the PNG files beside it (needs matplotlib). `--check`
writes nothing and fails if the README is not what would be written. The order of things: `experiments.py` runs,
`results.py` merges the calls, this reports.
"""

from __future__ import annotations

import argparse
import re
import sys
from pathlib import Path

from bench.quality.results import FILE, Results, load
from bench.quality.tables import TABLES
from gptq_hybrid.checkpoint._atomic import write_text_atomic

README = Path(__file__).with_name("README.md")
_BLOCK = re.compile(r"<!-- table: (\S+) -->\n(.*?)<!-- end -->", re.DOTALL)


def filled(text: str, results: Results) -> str:
    """``text`` with every table between its markers.

    Raises:
        ValueError: a marker names no table, or a table has no marker.
    """
    names = [match[1] for match in _BLOCK.finditer(text)]
    if sorted(names) != sorted(TABLES):
        raise ValueError(f"README.md has markers for {sorted(names)}, there are tables {sorted(TABLES)}")
    return _BLOCK.sub(
        lambda match: f"<!-- table: {match[1]} -->\n{TABLES[match[1]](results)}\n<!-- end -->", text
    )


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--check", action="store_true", help="write nothing; exit 1 if the README is stale")
    parser.add_argument("--no-pictures", action="store_true")
    parser.add_argument("--results", type=Path, default=FILE)
    args = parser.parse_args()
    results = load(args.results)
    current = README.read_text(encoding="utf-8")
    text = filled(current, results)
    if args.check:
        if text != current:
            sys.exit("README.md does not hold the tables of results.json: run python -m bench.quality.report")
        return
    write_text_atomic(README, text)
    if not args.no_pictures:
        from bench.quality.pictures import PICTURES, save

        for name, draw in PICTURES.items():
            save(draw(results), README.with_name(f"{name}.png"))


if __name__ == "__main__":
    main()
