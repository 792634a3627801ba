"""Task accuracy from the results of lm-eval; a stand-in takes its place and has the shapes of 0.4.13."""

from __future__ import annotations

import io
import json
import shutil
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from gptq_hybrid.common.errors import HybridError
from gptq_hybrid.evaluate import (
    Evaluation,
    TaskRequest,
    as_json,
    check_tasks,
    evaluate_tasks,
    from_json,
    task_tables,
)
from gptq_hybrid.evaluate._task_worker import extract_rows
from gptq_hybrid.evaluate.tasks import paired_differences
from tests.streaming.rounded import CHECKPOINT, rounded

# Answers by the name of the folder; written out for the process that runs them.
_FAKE = """
import json, os, pathlib

def simple_evaluate(*, model, model_args, tasks, limit, device, batch_size, **how):
    name = pathlib.Path(model_args["pretrained"]).name
    with open(os.environ["FAKE_CALLS"], "a") as calls:
        print(json.dumps([name, model, model_args, tasks, limit, device, batch_size, os.getpid()]), file=calls)
    if name in os.environ.get("FAKE_FAILS", "").split():
        raise RuntimeError("out of memory")
    if name in os.environ.get("FAKE_DIES", "").split():
        os._exit(9)
    right = {"checkpoint": [1, 1, 1, 0, 1, 1], "copy": [1, 0, 1, 0, 0, 1]}[name]
    right = right[:limit]
    return {
        "results": {"sums": {
            "alias": "sums", "sample_len": len(right),
            "exact_match,strict": sum(right) / len(right), "exact_match_stderr,strict": 0.125,
        }},
        "group_subtasks": {}, "higher_is_better": {"sums": {"exact_match": True}},
        "n-samples": {"sums": {"original": 6, "effective": len(right)}},
        "samples": {"sums": [
            {"doc_id": i, "doc_hash": f"h{i}", "filter": "strict", "exact_match": float(r)}
            for i, r in enumerate(right)
        ]},
    }
"""
_TASKS = """
class TaskManager:
    def __init__(self, include_path=None):
        self.include_path = include_path

    def match_tasks(self, names):
        return [name for name in names if name == "sums"]
"""


@pytest.fixture
def lm_eval(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Install a stand-in for the library, and return the file in which it notes its calls."""
    package = tmp_path / "fake" / "lm_eval"
    (package / "tasks").mkdir(parents=True)
    (package / "__init__.py").write_text(_FAKE)
    (package / "tasks" / "__init__.py").write_text(_TASKS)
    metadata = tmp_path / "fake" / "lm_eval-0.4.13.dist-info"
    metadata.mkdir()
    (metadata / "METADATA").write_text("Metadata-Version: 2.1\nName: lm_eval\nVersion: 0.4.13\n")
    for name in [name for name in sys.modules if name.partition(".")[0] == "lm_eval"]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.syspath_prepend(package.parent)
    calls = tmp_path / "calls"
    monkeypatch.setenv("FAKE_CALLS", str(calls))
    return calls


@pytest.fixture
def request_(tmp_path: Path) -> TaskRequest:
    """An original and a copy; the stand-in tells them apart by name, not by weights."""
    shutil.copytree(CHECKPOINT, tmp_path / "copy")
    return TaskRequest(CHECKPOINT, (tmp_path / "copy",), ("sums",), device="cpu", backend="hf")


def read_calls(file: Path) -> list[Any]:
    return [json.loads(line) for line in file.read_text().splitlines()] if file.exists() else []


def test_values_errors_and_paired_differences(lm_eval: Path, request_: TaskRequest) -> None:
    results = evaluate_tasks(request_)
    assert [(s.checkpoint, s.task, s.metric, s.filter, s.stderr, s.documents) for s in results.scores] == [
        ("checkpoint", "sums", "exact_match", "strict", 0.125, 6),
        ("copy", "sums", "exact_match", "strict", 0.125, 6),
    ]
    assert [s.value for s in results.scores] == pytest.approx([5 / 6, 3 / 6])
    (difference,) = results.differences
    assert (difference.a, difference.b) == ("copy", "checkpoint")
    assert (difference.documents, difference.differing) == (6, 2)
    assert difference.difference.value == pytest.approx(-1 / 3)
    # Two answers lost, none gained: McNemar's exact p is 2 · (1/2)².
    assert difference.p == 0.5
    # Paired t: sd of (0, -1, 0, 0, -1, 0) is sqrt(4/15), t(0.975, 5) = 2.5706.
    half = 2.5706 * (4 / 15) ** 0.5 / 6**0.5
    assert difference.difference.low == pytest.approx(-1 / 3 - half, abs=1e-4)
    assert difference.difference.high == pytest.approx(-1 / 3 + half, abs=1e-4)


def test_every_checkpoint_runs_in_a_process_of_its_own_with_what_was_asked(
    lm_eval: Path, request_: TaskRequest
) -> None:
    evaluate_tasks(replace(request_, limit=3, arguments={"batch_size": 2, "trust_remote_code": False}))
    first, second = read_calls(lm_eval)
    assert first[-1] != second[-1]
    name, model, arguments, tasks, limit, device, batch_size, _ = second
    assert (name, model, tasks, limit, device, batch_size) == ("copy", "hf", ["sums"], 3, "cpu", "2")
    assert arguments.pop("pretrained").endswith("/copy")
    assert arguments == {"dtype": "auto", "trust_remote_code": False}


def test_results_are_kept_for_a_run_that_was_cut_off(
    lm_eval: Path, request_: TaskRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    resumable = replace(request_, work=tmp_path / "work")
    # Its own chat template: without it the copy is the original, and one stored result serves both.
    (tmp_path / "copy" / "chat_template.jinja").write_text("{{ messages }}")
    monkeypatch.setenv("FAKE_FAILS", "copy")
    with pytest.raises(HybridError, match=r"failed on copy: RuntimeError: out of memory"):
        evaluate_tasks(resumable)
    monkeypatch.delenv("FAKE_FAILS")
    results = evaluate_tasks(resumable)
    assert [call[0] for call in read_calls(lm_eval)] == ["checkpoint", "copy", "copy"]
    assert results == evaluate_tasks(resumable)
    assert len(read_calls(lm_eval)) == 3
    evaluate_tasks(replace(resumable, limit=2))
    assert len(read_calls(lm_eval)) == 5, "other settings, other results"


def test_a_process_that_dies_is_an_error_for_people(
    lm_eval: Path, request_: TaskRequest, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FAKE_DIES", "checkpoint")
    with pytest.raises(HybridError, match="failed on checkpoint: its process ended"):
        evaluate_tasks(request_)


def test_tasks_that_lm_eval_does_not_know_are_named(lm_eval: Path, request_: TaskRequest) -> None:
    assert check_tasks(request_) == "hf"
    with pytest.raises(HybridError, match=r"lm-eval 0\.4\.13 has no task 'products'"):
        check_tasks(replace(request_, tasks=("sums", "products")))
    with pytest.raises(HybridError, match="backend 'jax' is not known"):
        check_tasks(replace(request_, backend="jax"))
    with pytest.raises(HybridError, match="is no folder of tasks"):
        check_tasks(replace(request_, include_path=Path("nowhere")))


def test_a_group_pools_its_tasks_and_a_perplexity_is_not_paired() -> None:
    def lm_eval_results(right: list[float]) -> dict[str, Any]:
        return {
            "results": {
                "group": {"alias": "group", "acc,none": sum(right) / 4, "acc_stderr,none": "N/A"},
                "one": {"acc,none": sum(right[:2]) / 2, "acc_stderr,none": 0.1, "word_perplexity,none": 12.5},
                "two": {"acc,none": sum(right[2:]) / 2},
            },
            "group_subtasks": {"group": ["one", "two"], "one": [], "two": []},
            "n-samples": {"one": {"effective": 2}, "two": {"effective": 2}},
            "samples": {
                "one": [
                    {"doc_id": i, "filter": "none", "acc": right[i], "word_perplexity": [-3.0, 5]}
                    for i in (0, 1)
                ],
                "two": [{"doc_id": i, "filter": "none", "acc": right[i + 2]} for i in (0, 1)],
            },
        }

    rows = {
        name: extract_rows(lm_eval_results(right))
        for name, right in (("a", [1, 1, 0, 1.0]), ("b", [1, 0, 0, 0.0]))
    }
    assert [(r["task"], r["metric"], r["documents"], r["stderr"]) for r in rows["a"]] == [
        ("group", "acc", 4, None),
        ("one", "acc", 2, 0.1),
        ("one", "word_perplexity", 2, None),
        ("two", "acc", 2, None),
    ]
    differences = paired_differences(rows)
    assert [(d.task, d.metric, d.difference.value) for d in differences] == [
        ("group", "acc", -0.5),
        ("one", "acc", -0.5),
        ("two", "acc", -0.5),
    ]


def test_other_documents_are_not_paired() -> None:
    row = {"task": "t", "metric": "acc", "filter": "none"}
    rows = {"a": [{**row, "samples": {"t/0/": 1.0}}], "b": [{**row, "samples": {"t/1/": 1.0}}]}
    assert paired_differences(rows) == ()


def test_results_come_back_from_json_and_are_shown(lm_eval: Path, request_: TaskRequest) -> None:
    evaluation = Evaluation("checkpoint", (), tasks=evaluate_tasks(request_))
    assert from_json(json.loads(json.dumps(as_json(evaluation)))) == evaluation
    old = as_json(evaluation)
    del old["tasks"]
    assert from_json(old).tasks is None, "a file of before"
    console = Console(width=110, record=True, file=io.StringIO())
    assert evaluation.tasks is not None
    for table in task_tables(evaluation.tasks):
        console.print(table)
    text = console.export_text()
    for words in ("exact_match (strict)", "0.8333 ± 0.1250", "-0.3333", "0.500", "lm-eval 0.4.13, hf"):
        assert words in text


def test_a_gptq_copy_is_told_from_an_original(
    lm_eval: Path, request_: TaskRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of the stand-in there is no ``models``: a quantized checkpoint gets to where gptqmodel loads it."""
    packed = rounded(tmp_path / "w4", 4)
    with pytest.raises(HybridError, match=r"failed on w4: ModuleNotFoundError: .*lm_eval\.models"):
        evaluate_tasks(replace(request_, quantized=(packed,)))


def test_answers_that_are_all_the_same_have_no_interval() -> None:
    row = {"task": "t", "metric": "acc", "filter": "none", "samples": {f"t/{i}/": 1.0 for i in range(5)}}
    (difference,) = paired_differences({"a": [row], "b": [row]})
    assert (difference.difference.value, difference.differing, difference.p) == (0, 0, 1)
    assert difference.difference.low is difference.difference.high is None
