"""Tables of the page; written by `python -m bench.pages draft_vocab`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from bench.pages import Page
from bench.results import Json
from bench.tables import Column, table


def _share(share: float) -> str:
    return f"{100 * share:.1f}"


def by_size(result: Json) -> str:
    """The list counted from all, by what it is measured on and N."""
    sizes = [str(n) for n in result["sizes"] if n < result["vocab_size"]]
    rows = [{"on": on, **shares} for on, shares in result["groups"]["all"].items()]
    return table([Column("measured on", "on"), *(Column(f"{int(n):,}", n, _share) for n in sizes)], rows)


def by_group(result: Json) -> str:
    """Lists counted from one group, all others and all, measured on each group, at N = 32,768."""
    columns = [Column(group, (group, "32768"), _share) for group in result["groups"]["all"]]
    rows = [{"counted": counted, **on} for counted, on in result["groups"].items()]
    return table([Column("counted on", "counted"), *columns], rows)


def blended(result: Json) -> str:
    """Lists of short texts, alone and blended, at N = 32,768: on their own kind of documents, then on all."""
    kinds = {"alone": "alone", "blended": "blended", "large": "shipped"}
    columns: list[Any] = [Column("short text", "group"), Column("tokens", "tokens", ",")]
    for on in ("own", "all"):
        columns += [Column(f"{on}: {title}", (kind, on, "32768"), _share) for kind, title in kinds.items()]
    return table(columns, ({"group": group, **row} for group, row in result["small"].items()))


_HERE = Path(__file__).parent
QWEN, MINI = _HERE / "qwen3.5.json", _HERE / "mini.json"
PAGE = Page(
    _HERE / "README.md",
    {
        "sizes": (by_size, QWEN),
        "groups": (by_group, QWEN),
        "blended": (blended, QWEN),
        "mini": (by_size, MINI),
    },
)
