"""Pages of `bench`: they hold what their results give, and they link to what is there."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bench.pages import HERE, Page, page, rooms
from bench.results import dumps
from bench.tables import Column, interval, table

_LINK = re.compile(r"\]\((?!https?:)([^)#]+)")
PAGES = sorted(HERE.rglob("*.md"))
# Inputs, not results: a checkpoint and texts.
_INPUTS = ("mini/checkpoint", "mini/heldout")
RESULTS = sorted(
    path for path in HERE.rglob("*.json") if not path.relative_to(HERE).as_posix().startswith(_INPUTS)
)
scalars = st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text()
values = st.recursive(scalars, lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner))


@pytest.mark.parametrize("room", rooms())
def test_a_page_holds_what_its_results_give(room: str) -> None:
    text = page(room).readme.read_text(encoding="utf-8")
    assert page(room).filled(text) == text, f"run python -m bench.pages {room}"


@pytest.mark.parametrize("path", PAGES, ids=lambda path: path.relative_to(HERE).as_posix())
def test_links_lead_to_files(path: Path) -> None:
    gone = [
        link for link in _LINK.findall(path.read_text(encoding="utf-8")) if not (path.parent / link).exists()
    ]
    assert not gone


def test_no_result_lies_there_unread() -> None:
    read = {file.resolve() for room in rooms() for file in page(room).files()}
    linked = {
        (path.parent / link).resolve()
        for path in PAGES
        for link in _LINK.findall(path.read_text(encoding="utf-8"))
    }
    assert [path for path in RESULTS if path.resolve() not in read | linked] == []


def test_a_marker_without_a_table_and_a_table_without_a_marker_are_errors(tmp_path: Path) -> None:
    one = Page(tmp_path / "README.md", {"a": (lambda: "A",)})
    assert (
        one.filled("x\n<!-- table: a -->\nold\n<!-- end -->\n") == "x\n<!-- table: a -->\nA\n<!-- end -->\n"
    )
    for text in ("", "<!-- table: a -->\n<!-- end -->\n<!-- table: b -->\n<!-- end -->\n"):
        with pytest.raises(ValueError, match="markers"):
            one.filled(text)


def test_a_result_that_is_not_there_is_an_error(tmp_path: Path) -> None:
    one = Page(tmp_path / "README.md", {"a": (str, tmp_path / "a.json")})
    with pytest.raises(FileNotFoundError, match="not measured yet"):
        one.filled("<!-- table: a -->\n<!-- end -->\n")


def test_a_cell_is_found_and_formatted_and_empty_where_there_is_none() -> None:
    columns = [
        Column("M", "m"),
        Column("µs", ("us", "ours"), ".1f"),
        Column("twice", lambda row: row["m"] * 2),
    ]
    rows = [{"m": 1, "us": {"ours": 2.55}}, {"m": 2, "us": {}}, {"m": 3, "us": {"ours": 0.0}}]
    assert table(columns, rows).splitlines()[2:] == ["| 1 | 2.5 | 2 |", "| 2 |  | 4 |", "| 3 | 0.0 | 6 |"]


def test_an_interval_is_in_the_units_asked_for_and_has_no_negative_zero() -> None:
    assert interval({"value": 0.0123, "low": -0.01, "high": 0.03}, "+.1f", 100) == "+1.2 [−1.0, +3.0]"
    assert interval({"value": -0.0001, "low": None, "high": None}, ".1f") == "0.0"


@given(values)
def test_results_read_as_they_were_written(value: Any) -> None:
    assert json.loads(dumps(value)) == value
