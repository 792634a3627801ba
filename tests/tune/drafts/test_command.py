"""``qwen36 tune drafts`` from end to end: real processes and real HTTP, with a fake model behind them."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from gptq_hybrid.common import vllm_server as server
from tests.command_line import Run, in_process
from tests.tune.drafts.made import ENVIRONMENT, FAKE, MINI
from vllm_qwen36_plugin.tune.drafts import command as _command

QUICK = ("--batches", "1,4", "--context", "short", "--max-tokens", "12", "--repeats", "2", "--requests", "4")


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working folder with a file of prompts, and a fake server on a machine that has a GPU."""
    monkeypatch.chdir(tmp_path)
    rows = [{"prompt": f"Question {i}: " + "why? " * i} for i in range(12)]
    (tmp_path / "prompts.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    monkeypatch.setattr(server, "vllm_command", lambda: [sys.executable, str(FAKE)])
    monkeypatch.setattr(_command, "probe_machine", lambda: (True, dict(ENVIRONMENT)))
    monkeypatch.delenv("FAKE_VLLM", raising=False)
    return tmp_path


@pytest.fixture
def fake(monkeypatch: pytest.MonkeyPatch, here: Path) -> Callable[..., None]:
    """Set what the fake server does; its requests go to ``requests.jsonl``."""

    def set_to(**what: Any) -> None:
        monkeypatch.setenv("FAKE_VLLM", json.dumps({"log": str(here / "requests.jsonl"), **what}))

    set_to()
    return set_to


@pytest.fixture
def qwen36(monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str], here: Path) -> Run:
    """Exit code, stdout and stderr of the command, run in this process."""
    return in_process(monkeypatch, capfd, "tune", "drafts")


def requests(here: Path) -> list[dict[str, Any]]:
    path = here / "requests.jsonl"
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


def gone(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return True
    return False


def words(text: str) -> str:
    return " ".join(text.split())


def test_figures_from_a_server(qwen36: Run, fake: Callable[..., None], here: Path) -> None:
    """Steps of 8 ms whatever the drafts, of which 0, 1, 2, 0, … are accepted: two drafts nearly halve the time."""
    fake(step_ms=8)
    (here / "r").mkdir()
    code, out, err = qwen36(MINI, "prompts.jsonl", "--numbers", "2,0", *QUICK, "--out", "r/d.json")
    assert code == 0, err
    assert sorted(p.name for p in (here / "r").iterdir()) == [
        "d.json",
        "d.png",
        "d.server-0.log",
        "d.server-2.log",
    ]
    content = json.loads((here / "r" / "d.json").read_text())
    cells = {(cell["drafts"], cell["batch"]): cell for cell in content["cells"]}
    assert list(cells) == [(0, 1), (0, 4), (2, 1), (2, 4)]
    for (drafts, batch), cell in cells.items():
        assert [len(repeat["tpot_ms"]) for repeat in cell["repeats"]] == [4, 4]
        assert [repeat["tokens"] for repeat in cell["repeats"]] == [48, 48]
        # 12 tokens: the first, then 11 steps of one, or 6 of 2, 3, 1, 2, 3 (and what is left of the limit).
        steps = 5 if drafts else 11
        # Arrivals bunch up on a busy machine.
        assert 6 * steps / 11 <= cell["tpot_ms"] < 32 * steps / 11
        assert cell["tpot_ms"] <= cell["tpot_ms_95"]
        assert 8 <= cell["ttft_ms"] < 200
        assert 12 * batch / 0.5 < cell["tokens_per_second"] < 12 * batch / (0.008 * (steps + 1))
        if drafts:
            # 8 answers of 5 steps each: 1, 2, 0, 1, 2 accepted.
            assert cell["counters"]["num_drafts"] == 40
            assert cell["counters"]["num_draft_tokens"] == 80
            assert cell["counters"]["num_accepted_tokens_per_pos"] == [32, 16]
            assert cell["acceptance_by_position"] == [0.8, 0.4]
            assert cell["acceptance_length"] == pytest.approx(2.2)
        else:
            assert cell["acceptance_by_position"] == []
            assert cell["acceptance_length"] is None
    assert content["settings"]["environment"] == ENVIRONMENT
    assert content["recommendation"]["num_speculative_tokens"] == 2
    assert """--speculative-config '{"method": "mtp", "num_speculative_tokens": 2}'""" in out
    assert all(gone(entry["pid"]) for entry in requests(here))


def test_the_requests_that_are_sent(qwen36: Run, fake: Callable[..., None], here: Path) -> None:
    code, _, err = qwen36(
        *(MINI, "prompts.jsonl", "--numbers", "0,1", "--batches", "3", "--context", "short,long"),
        *("--long-tokens", "300", "--max-tokens", "40", "--repeats", "2", "--temperature", "0.7"),
        *("--vllm-args", "--kv-cache-dtype fp8"),
    )
    assert code == 0, err
    sent = requests(here)
    assert {entry["path"] for entry in sent} == {"/v1/chat/completions"}
    assert max(entry["in_flight"] for entry in sent) == 3
    assert {entry["body"]["temperature"] for entry in sent} == {0.7}
    arguments = sent[0]["arguments"]
    assert arguments[0] == str(MINI)
    assert "--speculative-config" not in arguments
    assert {"--no-enable-prefix-caching", "--kv-cache-dtype"} <= set(arguments)
    assert arguments[arguments.index("--max-num-seqs") + 1] == "3"
    timed = [entry for entry in sent if entry["body"]["max_tokens"] == 40]
    # Twice 8 requests a cell, two contexts, two counts of drafts; each cell is warmed up with 3 before.
    assert Counter(entry["drafts"] for entry in timed) == {0: 32, 1: 32}
    assert len(sent) == len(timed) + 2 * 2 * 3
    by_count = [
        sorted(json.dumps(entry["body"], sort_keys=True) for entry in timed if entry["drafts"] == count)
        for count in (0, 1)
    ]
    assert by_count[0] == by_count[1], "every count of drafts gets the same requests"
    cells = json.loads((here / "qwen36-drafts.json").read_text())["cells"]
    lengths = {cell["context"]: cell["prompt_tokens"] for cell in cells}
    assert lengths["short"] < 100
    assert 299 <= lengths["long"] <= 301


def test_no_drafts_may_be_best(qwen36: Run, fake: Callable[..., None], here: Path) -> None:
    fake(step_ms=4, draft_ms=8)
    code, out, err = qwen36(MINI, "prompts.jsonl", "--numbers", "0,1", *QUICK)
    assert code == 0, err
    assert "Serve without --speculative-config" in words(out)
    line = out[out.index("vllm serve ") :].splitlines()[0]
    assert "speculative" not in line
    assert json.loads((here / "qwen36-drafts.json").read_text())["recommendation"]["arguments"] == []


def test_json_is_all_that_is_printed(qwen36: Run, fake: Callable[..., None], here: Path) -> None:
    code, out, _ = qwen36(MINI, "prompts.jsonl", "--numbers", "0", *QUICK, "--json")
    assert code == 0
    printed = json.loads(out)["result"]
    assert (printed["path"], printed["plot"]) == ("qwen36-drafts.json", "qwen36-drafts.png")
    content = json.loads((here / "qwen36-drafts.json").read_text())
    assert {key: printed[key] for key in content} == content


def test_a_server_that_dies_leaves_what_was_measured(
    qwen36: Run, fake: Callable[..., None], here: Path
) -> None:
    # 1 to warm up, 8, then 4 to warm up: it dies in the second cell of 1 draft.
    fake(die_after=14, die_with=1)
    arguments = (MINI, "prompts.jsonl", "--numbers", "0,1", *QUICK)
    code, out, err = qwen36(*arguments)
    assert code == 2
    assert "Recommend" not in out
    assert "with 1 draft, the server broke off" in words(err)
    assert "qwen36-drafts.server-1.log" in words(err)
    assert "3 of 4 cells are kept in qwen36-drafts.json" in words(err)
    assert "Traceback" not in err
    content = json.loads((here / "qwen36-drafts.json").read_text())
    assert content["recommendation"] is None
    assert all(gone(entry["pid"]) for entry in requests(here))
    (here / "requests.jsonl").unlink()
    fake()
    code, out, err = qwen36(*arguments)
    assert code == 0, err
    assert "3 cells are taken from qwen36-drafts.json" in words(err)
    assert {(entry["drafts"], entry["body"]["max_tokens"]) for entry in requests(here)} == {(1, 12)}
    assert len(requests(here)) == 4 + 8, "one cell alone, and its warm-up"
    again = json.loads((here / "qwen36-drafts.json").read_text())
    assert again["cells"][:3] == content["cells"]
    assert len(again["cells"]) == 4


def test_another_count_of_drafts_is_added_to_those_measured(
    qwen36: Run, fake: Callable[..., None], here: Path
) -> None:
    assert qwen36(MINI, "prompts.jsonl", "--numbers", "0", *QUICK)[0] == 0
    (here / "requests.jsonl").unlink()
    assert qwen36(MINI, "prompts.jsonl", "--numbers", "0,3", *QUICK)[0] == 0
    assert {entry["drafts"] for entry in requests(here)} == {3}


def test_results_of_other_settings_are_not_mixed(qwen36: Run, fake: Callable[..., None], here: Path) -> None:
    arguments = ("prompts.jsonl", "--numbers", "0", *QUICK)
    assert qwen36(MINI, *arguments)[0] == 0
    before = (here / "qwen36-drafts.json").read_bytes()
    code, _, err = qwen36(MINI, *arguments, "--temperature", "1")
    assert code == 2
    assert "other settings: temperature 0.0 then, 1.0 now" in words(err)
    (here / "prompts.jsonl").write_text('{"prompt": "another"}\n')
    assert "other settings: other prompts" in words(qwen36(MINI, *arguments)[2])
    assert (here / "qwen36-drafts.json").read_bytes() == before


def test_a_server_that_does_not_start(qwen36: Run, fake: Callable[..., None], here: Path) -> None:
    fake(no_start_with=4)
    code, _, err = qwen36(MINI, "prompts.jsonl", "--numbers", "0,4", *QUICK)
    assert code == 2
    assert "with 4 drafts, vllm serve exited with code 1" in words(err)
    assert "not enough memory for that many drafts" in words(err)
    assert "2 of 4 cells are kept" in words(err)


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ({"refuse": [3]}, 'refused a request (400): {"error": {"message": "no such thing"'),
        ({"no_usage": True}, "without saying how many tokens"),
        ({"die_at_metrics": True}, "with no drafts, the server broke off"),
        ({"stop_after": 1}, "no answer has more than one token"),
    ],
)
def test_answers_that_cannot_be_used(
    setting: dict[str, Any], message: str, qwen36: Run, fake: Callable[..., None], here: Path
) -> None:
    fake(**setting)
    code, _, err = qwen36(MINI, "prompts.jsonl", "--numbers", "0", *QUICK)
    assert code == 2
    assert message in words(err)
    assert "Traceback" not in err
    assert all(gone(entry["pid"]) for entry in requests(here))


LAUNCH = f"""
import sys
from gptq_hybrid.cli import main
from gptq_hybrid.common import vllm_server
from vllm_qwen36_plugin.tune.drafts import command
vllm_server.vllm_command = lambda: [sys.executable, {str(FAKE)!r}]
command.probe_machine = lambda: (True, {ENVIRONMENT!r})
main()
"""


@pytest.mark.parametrize(("sign", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_nothing_is_left_running_on_a_signal(
    sign: signal.Signals, code: int, fake: Callable[..., None], here: Path
) -> None:
    fake(step_ms=20)
    command = [
        sys.executable,
        "-c",
        LAUNCH,
        "tune",
        "drafts",
        str(MINI),
        "prompts.jsonl",
        "--numbers",
        "0,1",
    ]
    process = subprocess.Popen(
        [*command, *QUICK], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True
    )
    deadline = time.monotonic() + 60
    results = here / "qwen36-drafts.json"
    # Into the second cell: the first is kept, and answers are under way.
    while (not results.exists() or len(requests(here)) < 12) and time.monotonic() < deadline:
        assert process.poll() is None, process.communicate()
        time.sleep(0.05)
    process.send_signal(sign)
    out, err = process.communicate(timeout=20)
    assert process.returncode == code, (out, err)
    assert "Traceback" not in err
    assert "1 of 4 cells are kept in qwen36-drafts.json; the same command goes on" in words(err)
    assert len(json.loads(results.read_text())["cells"]) == 1
    assert requests(here)
    assert all(gone(entry["pid"]) for entry in requests(here))
