"""The matrix of versions: what a cell says, and that rows are merged and not lost."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from bench.matrix.report import producer_table, reasons_table, state, versions_table
from bench.mtp_faults.server import what_was_said
from tests.matrix.environments import dependencies
from tests.matrix.run import CASES, differences, keep


def cell(**changed: Any) -> dict[str, Any]:
    served = {"started": True, "right": True, "accepted": 5, "proposed": 6, "message": [], "aside": []}
    return served | changed


REFUSED = cell(started=False, right=None, message=["vllm-qwen36-plugin: no", "  * more"])
DEAD = cell(right=None, message=["TypeError: no such thing"])


@pytest.mark.parametrize(
    ("given", "said"),
    [
        (None, ""),
        (cell(), "5 of 6"),
        (cell(right=False), "5 of 6, WRONG text"),
        (cell(accepted=0, proposed=0), "served"),
        (REFUSED, "refused"),
        (cell(started=False, right=None, message=["ValueError: x"]), "does not start"),
        (DEAD, "dies at the request"),
    ],
)
def test_a_cell_says_what_became_of_a_server(given: Any, said: str) -> None:
    assert state(given) == said


def test_the_tables_have_both_ways_and_the_reasons() -> None:
    rows = [
        {
            "vllm": "0.33.0",
            "place": "CPU, AVX2",
            "compiled": "0.32.0",
            "cells": {"MTP": {"plugin": cell(aside=["vllm-qwen36-plugin: x is off"]), "stock": DEAD}},
        }
    ]
    line = versions_table({"rows": rows}).splitlines()[2]
    assert line.startswith("| 0.33.0 over 0.32.0, CPU, AVX2 | 5 of 6 / dies at the request |")
    assert reasons_table({"rows": rows}).splitlines()[2:] == [
        "| 0.33.0, CPU, AVX2 | MTP, plugin | off | vllm-qwen36-plugin: x is off |",
        "| 0.33.0, CPU, AVX2 | MTP, stock | dies at the request | `TypeError: no such thing` |",
    ]


def test_a_later_run_of_one_case_keeps_the_others_and_versions_are_in_order(tmp_path: Path) -> None:
    file = tmp_path / "vllm.json"
    row = {"vllm": "0.9.0", "place": "CPU", "compiled": "0.9.0"}
    keep(file, ("vllm", "place"), [row | {"cells": {"MTP": {"plugin": cell()}}}])
    keep(file, ("vllm", "place"), [row | {"vllm": "0.10.0", "cells": {}}])
    keep(file, ("vllm", "place"), [row | {"cells": {"MTP": {"stock": DEAD}, "drafts": {"plugin": cell()}}}])
    rows = json.loads(file.read_text())["rows"]
    assert [row["vllm"] for row in rows] == ["0.9.0", "0.10.0"]
    assert rows[0]["cells"] == {"MTP": {"plugin": cell(), "stock": DEAD}, "drafts": {"plugin": cell()}}


def test_the_same_bytes_have_the_same_letter() -> None:
    def row(gptqmodel: str, digest: str, **recipe: Any) -> dict[str, Any]:
        made = {"tensors": 9, "digest": digest, "slower": []} | recipe
        return {"gptqmodel": gptqmodel, "transformers": "5", "torch": "2", "recipes": {"static-mse": made}}

    failed = row("7.0", "") | {"recipes": {"static-mse": {"error": "ImportError: x"}}}
    rows = [failed, row("7.6.0", "a"), row("7.6.0", "b"), row("7.7.0", "a", slower=["off"])]
    assert [line.split("|")[2].strip() for line in producer_table({"rows": rows}).splitlines()[2:6]] == [
        "fails: `ImportError: x`",
        "9 A",
        "9 B",
        "9 A, slower",
    ]


def test_a_row_that_is_not_recorded_is_held_against_those_that_are() -> None:
    def row(**recipe: Any) -> dict[str, Any]:
        return {"gptqmodel": "8", "transformers": "6", "recipes": {"static-mse": recipe}}

    recorded = [row(error="ImportError: x"), row(tensors=9, digest="a", slower=[])]
    assert differences(row(tensors=9, digest="a", slower=[]), recorded) == []
    for recipe, said in (
        ({"tensors": 9, "digest": "b", "slower": []}, "other bytes than in any row of record"),
        ({"tensors": 9, "digest": "a", "slower": ["the speed-ups are off"]}, "the speed-ups are off"),
        ({"error": "ImportError: y"}, "ImportError: y"),
    ):
        assert differences(row(**recipe), recorded) == [f"gptqmodel 8, transformers 6, static-mse: {said}"]


def test_options_are_the_plugins_alone_and_everything_else_is_served_by_stock_too() -> None:
    assert {name for name, case in CASES.items() if "stock" in case.ways()} == {
        "MTP",
        "act order",
        "lost head",
    }


def test_an_environment_gets_what_the_project_asks_for() -> None:
    assert "pluggy>=1.5" in dependencies()
    assert any(name.startswith("gptqmodel") for name in dependencies("quantize"))


@pytest.mark.parametrize(
    ("lines", "said"),
    [
        (
            [
                "(APIServer pid=7) INFO x",
                "(APIServer pid=7) vllm-qwen36-plugin: no",
                "(APIServer pid=7)   * why",
            ],
            ["vllm-qwen36-plugin: no", "  * why"],
        ),
        (
            [
                "(Worker pid=8) ERROR 11-30 16:49:21 [a.py:1] TypeError: the cause",
                "(EngineCore pid=7) ERROR 11-30 16:49:21 [b.py:2] RuntimeError: Worker failed",
                "(APIServer pid=6) INFO: 500",
            ],
            ["TypeError: the cause"],
        ),
        (
            ["pydantic_core.ValidationError: 1", "  Value error, desc_act [type=x]", "  For more visit y"],
            ["Value error, desc_act [type=x]"],
        ),
        (["first", "", "killed"], ["first", "killed"]),
    ],
    ids=["ours", "engine", "front", "anything"],
)
def test_of_a_log_what_ended_the_server_is_kept(lines: list[str], said: list[str]) -> None:
    assert what_was_said(lines) == said
