"""Data sets of a hub, streamed through `datasets` from a loopback server that answers as a hub does."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from gptq_hybrid.calibration._hub import HubSpec, is_hub_spec, map_columns, parse_hub_spec
from gptq_hybrid.common.errors import HybridError

from .dataset_hub import COMMIT, DatasetHub, dataset_hub

CARD = """\
---
configs:
- config_name: default
  data_files: [{split: train, path: pairs/train-*}, {split: test, path: pairs/test-*}]
- config_name: chat
  data_files: [{split: train, path: chat/*}]
---
"""
ASK = """\
import json, sys
from gptq_hybrid.calibration._sources import find_source, load_rows
from gptq_hybrid.common.errors import HybridError
for spec in sys.argv[1:]:
    try:
        print(json.dumps([load_rows(spec, 4, 0), find_source(spec).describe(spec)]))
    except HybridError as error:
        print(json.dumps(str(error)))
"""


@pytest.fixture(scope="module")
def hub(tmp_path_factory: pytest.TempPathFactory) -> Iterator[DatasetHub]:
    folder = tmp_path_factory.mktemp("dataset")
    (folder / "pairs").mkdir()
    (folder / "chat").mkdir()
    for split, count in (("train", 40), ("test", 3)):
        pairs = {
            "problem": [f"{split} {n}" for n in range(count)],
            "solution": [f"answer {n}" for n in range(count)],
        }
        pq.write_table(pa.table(pairs), folder / "pairs" / f"{split}-00000-of-00001.parquet")
    arguments: list[dict[str, Any]] = [{"town": "Rome"}, {"sum": "1+1"}]
    rows = [
        {
            "messages": [
                {"role": "user", "content": "hello"},
                {"role": "assistant", "content": "", "tool_calls": [{"name": "f", "arguments": call}]},
            ],
            "domain": "theirs",
        }
        for call in arguments
    ]
    pq.write_table(pa.Table.from_pylist([*rows, {"messages": []}]), folder / "chat" / "0.parquet")
    (folder / "README.md").write_text(CARD)
    with dataset_hub(folder) as server:
        yield server


@pytest.fixture(scope="module")
def answers(hub: DatasetHub, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """What each spec gives, all of them in one process: `datasets` reads HF_ENDPOINT when it is imported."""
    specs = [
        "me/data:test#user=problem,assistant=solution",
        f"me/data@{COMMIT}:chat/train",
        "me/data#text=solution",
        "me/data#nothing",
        "me/data",
        "me/other",
        "me/data:none#solution",
    ]
    home = tmp_path_factory.mktemp("home")
    environment = {
        **os.environ, "HF_ENDPOINT": hub.url, "HF_HOME": str(home), "HF_HUB_OFFLINE": "0", "HF_TOKEN": "",
    }  # fmt: skip
    done = subprocess.run(
        [sys.executable, "-c", ASK, *specs], env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    return dict(zip(specs, map(json.loads, done.stdout.splitlines()), strict=True))


def test_columns_become_a_conversation_and_the_commit_is_noted(answers: dict[str, Any]) -> None:
    rows, facts = answers["me/data:test#user=problem,assistant=solution"]
    questions = sorted(row["messages"][0]["content"] for row in rows)
    assert questions == ["test 0", "test 1", "test 2"]
    assert [message["role"] for message in rows[0]["messages"]] == ["user", "assistant"]
    assert rows[0]["messages"][1]["content"] == rows[0]["messages"][0]["content"].replace("test", "answer")
    assert facts == {"revision": COMMIT, "licence": "mit"}
    assert {row["domain"] for row in rows} == {"data"}


def test_a_configuration_of_conversations_is_read_and_what_is_none_left_out(answers: dict[str, Any]) -> None:
    rows, facts = answers[f"me/data@{COMMIT}:chat/train"]
    calls = [row["messages"][1]["tool_calls"][0]["function"]["arguments"] for row in rows]
    assert sorted(calls, key=str) == [{"sum": "1+1"}, {"town": "Rome"}]
    assert facts["revision"] == COMMIT


def test_train_is_the_split_and_rows_are_drawn_from_all_of_it(answers: dict[str, Any]) -> None:
    rows, _ = answers["me/data#text=solution"]
    assert len(rows) == 4
    assert [row["text"] for row in rows] != [f"answer {n}" for n in range(4)]


@pytest.mark.parametrize(
    ("spec", "says"),
    [
        ("me/data#nothing", "there is no column 'nothing'; there are problem, solution"),
        ("me/other", "data set me/other cannot be found"),
        ("me/data:none#solution", "cannot be read"),
        ("me/data", "none of the first 4 rows can be used; the last one has neither `messages`"),
    ],
)
def test_what_goes_wrong_is_told(answers: dict[str, Any], spec: str, says: str) -> None:
    assert says in answers[spec]


def test_only_the_split_asked_for_is_downloaded(hub: DatasetHub, answers: dict[str, Any]) -> None:
    files = {path.rpartition("/")[2] for path in hub.paths if path.endswith(".parquet")}
    assert {"test-00000-of-00001.parquet", "train-00000-of-00001.parquet", "0.parquet"} == files
    assert all(COMMIT in path for path in hub.paths if "/resolve/" in path)


@pytest.mark.parametrize(
    ("spec", "parsed"),
    [
        ("a/b", HubSpec("a/b", None, None, "train", ())),
        ("a/b@v1:test", HubSpec("a/b", "v1", None, "test", ())),
        ("a/b@refs/pr/1:c/test#text", HubSpec("a/b", "refs/pr/1", "c", "test", (("", "text"),))),
        ("a/b#user=q,assistant=a", HubSpec("a/b", None, None, "train", (("user", "q"), ("assistant", "a")))),
    ],
)
def test_a_data_set_id_is_taken_apart(spec: str, parsed: HubSpec) -> None:
    assert is_hub_spec(spec)
    assert parse_hub_spec(spec) == parsed


def test_what_is_no_data_set_id(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "b").touch()
    assert not any(map(is_hub_spec, ["a/b", "a", "x/y/z", "x/y:", "x/y#", "x/y#a=", "demo", "mix:broad"]))
    with pytest.raises(HybridError, match="a row has no 'answer'"):
        parse_hub_spec("x/y#user=q,answer=a")


def test_reasoning_of_a_column_of_its_own_goes_with_the_answer() -> None:
    row = {"q": "why?", "r": "because", "a": "so"}
    columns = (("user", "q"), ("reasoning", "r"), ("assistant", "a"))
    assert map_columns(row, columns)["messages"] == [
        {"role": "user", "content": "why?"},
        {"role": "assistant", "content": "so", "reasoning_content": "because"},
    ]
