"""Record the shapes of versions that were looked at, and write the table of all names.

    python -m vllm_qwen36_plugin.upstream.contract [TARGET …] [--check]

TARGET is what ``qwen36 contract`` takes. For whoever changes this project: after a new touch, or when a new version
has been read and is supported. ``seen.json`` and ``CONTRACT.md`` are written here, in the sources.
"""

from __future__ import annotations

import argparse
import sys

from gptq_hybrid.common.atomic import write_text_atomic

from .listed import ledgers, touches
from .packages import find_packages
from .record import SEEN, dump_seen, load_seen, parsed, shapes
from .table import contract_page

PAGE = "CONTRACT.md"


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("targets", nargs="*", metavar="TARGET")
    parser.add_argument("--check", action="store_true", help="write nothing; exit 1 if a file is stale")
    args = parser.parse_args()
    seen = load_seen() if SEEN.exists() else {}
    for target in args.targets:
        for package in find_packages(target):
            version = str(parsed(package.version))
            for name, shape in shapes(package, touches()).items():
                seen.setdefault(package.name, {}).setdefault(name, {})[version] = shape
    listed = {touch.name for touch in touches()}
    seen = {p: {n: by for n, by in names.items() if n in listed} for p, names in seen.items()}
    page = ledgers()["vllm_qwen36_plugin"] / PAGE
    wanted = {SEEN: dump_seen(seen), page: contract_page(touches(), seen)}
    stale = [path for path, text in wanted.items() if not path.exists() or path.read_text("utf-8") != text]
    if args.check and stale:
        sys.exit(f"stale: {', '.join(map(str, stale))}; run python -m {__package__}")
    if not args.check:
        for path in stale:
            write_text_atomic(path, wanted[path])


if __name__ == "__main__":
    main()
