"""The tables of README.md, from the JSON files beside this one.

python -m bench.draft_vocab.tables
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent
# A quarter of the small model's vocabulary; a size the 27B may be served with.
ONE_SIZE = {"qwen3.5": "32768", "mini": "2048"}


def load(name: str) -> dict[str, Any]:
    content: dict[str, Any] = json.loads((HERE / f"{name}.json").read_text(encoding="utf-8"))
    return content


def table(head: list[str], rows: list[list[str]]) -> str:
    lines = [head, ["---", *["---:"] * (len(head) - 1)], *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def percent(share: float) -> str:
    return f"{100 * share:.1f}"


def by_size(name: str) -> str:
    """The list counted from all, by what it is measured on and N."""
    found = load(name)
    sizes = [str(n) for n in found["sizes"] if n < found["vocab_size"]]
    rows = [[on, *(percent(shares[n]) for n in sizes)] for on, shares in found["groups"]["all"].items()]
    return table(["measured on", *(f"{int(n):,}" for n in sizes)], rows)


def by_domain(name: str) -> str:
    """Lists counted from one group, all others and all, measured on each group, at one N."""
    found, size = load(name), ONE_SIZE[name]
    groups = list(found["groups"]["all"])
    rows = [
        [counted, *(percent(on[group][size]) for group in groups)] for counted, on in found["groups"].items()
    ]
    return table(["counted on", *groups], rows)


def blended(name: str) -> str:
    """Lists of short texts, alone and blended, at one N: own documents, then all."""
    found, size = load(name)["small"], ONE_SIZE[name]
    rows = [
        [
            group,
            f"{row['tokens']:,}",
            f"{row['distinct']:,}",
            *(
                percent(row[kind][on][size])
                for on in ("own", "all")
                for kind in ("alone", "blended", "large")
            ),
        ]
        for group, row in found.items()
    ]
    kinds = ["alone", "blended", "shipped"]
    return table(
        ["short text", "tokens", "distinct", *(f"own: {k}" for k in kinds), *(f"all: {k}" for k in kinds)],
        rows,
    )


def tables() -> list[str]:
    """All, in the order of README.md."""
    return [
        by_size("qwen3.5"),
        by_domain("qwen3.5"),
        blended("qwen3.5"),
        by_size("mini"),
        by_domain("mini"),
    ]


if __name__ == "__main__":
    print("\n\n".join(tables()))
