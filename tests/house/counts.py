"""Count what the house rules are about in any checkout: ``python -m tests.house.counts [ROOT]``."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from .pages import PACKAGES, ROOT, prose
from .source_tree import SourceTree, circles, private_uses


def foreign_private_imports(tree: SourceTree, top: str) -> int:
    """Count imports in ``top`` of a private name or module of another room."""
    uses = (use.split(": ") for use in private_uses(tree, top))
    return sum(user.split(".")[:2] != name.split(".")[:2] for user, name in uses)


def counts(root: Path) -> dict[str, int | float]:
    """Count what is in the checkout at ``root``; a folder that is not there counts as empty."""
    text = (root / "README.md").read_text(encoding="utf-8")
    sentences = [len(sentence.split()) for sentence in prose(text)]
    tree = SourceTree(root, (*PACKAGES, "bench"))
    rooms = [init.parent for name in PACKAGES for init in (root / name).glob("*/__init__.py")]
    in_circles = circles(SourceTree(root, PACKAGES).arrows())
    bench = [
        path for path in (root / "bench").rglob("*") if path.is_file() and "__pycache__" not in path.parts
    ]
    sources = [path for path in bench if path.suffix == ".py"]
    return {
        "README: lines": len(text.splitlines()),
        "README: words": len(text.split()),
        "README: words a sentence": round(sum(sentences) / max(1, len(sentences)), 1),
        "private imports across rooms: packages": sum(foreign_private_imports(tree, t) for t in PACKAGES),
        "private imports across rooms: bench": foreign_private_imports(tree, "bench"),
        "circles of files: packages": len(in_circles),
        "files in them": sum(map(len, in_circles)),
        "bench: lines of Python": sum(len(path.read_text("utf-8").splitlines()) for path in sources),
        "bench: bytes of JSON results": sum(p.stat().st_size for p in bench if p.suffix == ".json"),
        "bench: bytes of all but Python": sum(p.stat().st_size for p in bench if p.suffix != ".py"),
        "rooms": len(rooms),
        "rooms with a page": sum((room / "README.md").is_file() for room in rooms),
    }


def main() -> None:
    """Print the counts of one checkout, a line each."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("root", nargs="?", type=Path, default=ROOT, help="a checkout; this one by default")
    for name, count in counts(parser.parse_args().root.resolve()).items():
        sys.stdout.write(f"{name:<40} {count:>10,}\n")


if __name__ == "__main__":
    main()
