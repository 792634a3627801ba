"""`bench/compact`: results that are small on disk and read as they were written."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bench.compact import dumps, save
from bench.drafts import report
from bench.results import load

scalars = st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text()
values = st.recursive(scalars, lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner))


@given(values)
def test_what_is_written_reads_the_same(value: Any) -> None:
    assert json.loads(dumps(value)) == value


def test_a_container_of_scalars_is_a_line() -> None:
    text = dumps(
        {"runs": {"w8": {"tokens": [[1, 2], [3]], "counts": {"1 2": 3, "4 5": 6}, "steps": 7, "none": []}}}
    )
    assert text.splitlines() == [
        "{",
        ' "runs": {',
        '  "w8": {',
        '   "tokens": [',
        "    [1,2],",
        "    [3]",
        "   ],",
        '   "counts": {"1 2":3,"4 5":6},',
        '   "steps": 7,',
        '   "none": []',
        "  }",
        " }",
        "}",
    ]


def test_a_file_is_replaced_whole_and_read_by_what_reads_all_results(tmp_path: Path) -> None:
    path = tmp_path / "result.json"
    path.write_text("of before")
    save(path, {"runs": {"none": {"tokens": [[1, 2]]}}})
    assert load(path) == {"runs": {"none": {"tokens": [[1, 2]]}}}
    assert [file.name for file in tmp_path.iterdir()] == ["result.json"]


@pytest.mark.parametrize("table", ["acceptance", "acceptance-gpu"])
def test_kept_results_are_in_this_form(table: str) -> None:
    path = report.TABLES[table][0]
    assert path.read_text(encoding="utf-8") == dumps(load(path)) + "\n"
    assert path.stat().st_size < 1 << 20
