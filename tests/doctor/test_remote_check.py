"""A check over HTTP agrees with a check of the folder, and a failing server is no verdict on the checkpoint."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from gptq_hybrid.checkpoint import INDEX_NAME, MTP_FILE, Checkpoint
from gptq_hybrid.checkpoint.files.http import HttpFiles
from gptq_hybrid.demo.builder import DemoCheckpoint
from gptq_hybrid.doctor import check
from gptq_hybrid.doctor.serve_line import must_be_downloaded, serve_arguments
from tests.checkpoint.range_server import serving


@pytest.fixture(scope="module")
def head_apart(build: Callable[..., DemoCheckpoint]) -> Path:
    return build(mtp="separate").path


def rules(path: Path | str) -> set[str]:
    return {finding.rule for finding in check(path, vllm="0.32").findings}


def test_a_good_checkpoint_serves_and_little_of_it_is_read(head_apart: Path) -> None:
    with serving(head_apart) as server:
        report = check(server.url, vllm="0.32")
        sent, requests = server.sent, len(server.requests)
    assert (report.verdict, report.findings) == ("serves", ())
    total = sum(path.stat().st_size for path in head_apart.iterdir())
    assert report.bytes_read <= sent < total / 10
    assert report.requests == requests < 80


@pytest.mark.parametrize("fault", ["unindexed", "truncated", "no tokenizer", "no index", "stale size"])
def test_a_faulty_checkpoint_has_the_findings_of_the_folder(separate: Path, fault: str) -> None:
    index = json.loads((separate / INDEX_NAME).read_text())
    if fault == "unindexed":
        index["weight_map"] = {n: f for n, f in index["weight_map"].items() if f != MTP_FILE}
    if fault == "stale size":
        index["metadata"]["total_size"] = 1
    (separate / INDEX_NAME).write_text(json.dumps(index))
    if fault == "truncated":
        (separate / MTP_FILE).write_bytes((separate / MTP_FILE).read_bytes()[:-1000])
    if fault == "no tokenizer":
        (separate / "tokenizer.json").unlink()
    if fault == "no index":
        (separate / INDEX_NAME).unlink()
    with serving(separate) as server:
        remote = rules(server.url)
    expected = rules(separate)
    assert expected
    if fault == "no index":
        # Without a listing the shards are unknown; only the usual names can be tried.
        assert "weights-missing" in remote
    else:
        assert remote == expected


@pytest.mark.parametrize("name", ["config.json", INDEX_NAME, "model-00001-of-00002.safetensors", MTP_FILE])
def test_a_server_that_breaks_down_is_no_verdict_on_the_checkpoint(head_apart: Path, name: str) -> None:
    with serving(head_apart) as server:
        server.faults.statuses[name] = [500] * 20
        report = check(server.url, vllm="0.32", timeout=5)
    assert report.verdict == "unreadable"
    assert report.exit_code() == 2
    assert name in report.findings[0].message


def test_a_connection_cut_once_is_tried_again(head_apart: Path) -> None:
    with serving(head_apart) as server:
        server.faults.cuts[MTP_FILE] = 1
        assert check(server.url, vllm="0.32").verdict == "serves"


def test_a_server_that_drips_ends_in_time(head_apart: Path) -> None:
    with serving(head_apart) as server:
        server.faults.drips[MTP_FILE] = "body"
        report = check(server.url, vllm="0.32", timeout=0.5)
    assert report.verdict == "unreadable"
    assert "0.5 s" in report.findings[0].message


def test_a_server_without_ranges_is_not_downloaded_from(head_apart: Path) -> None:
    with serving(head_apart) as server:
        server.faults.no_ranges = True
        report = check(server.url, vllm="0.32")
        paths = [request.path for request in server.requests if request.method == "GET"]
    assert report.verdict == "unreadable"
    assert "range" in report.findings[0].message
    # Each shard is requested once and its answer cut off; what the kernel buffered by then does not count.
    assert len(paths) == len(set(paths))


def test_the_command_line_takes_an_address(head_apart: Path) -> None:
    with serving(head_apart) as server:
        command = [str(Path(sys.executable).with_name("qwen36")), "check", server.url, "--json"]
        ended = subprocess.run(command, capture_output=True, text=True, check=False, timeout=60)
    assert ended.returncode == 0, ended
    [checkpoint] = json.loads(ended.stdout)["result"]["checkpoints"]
    wanted = {"path": server.url, "findings": [], "verdict": "serves"}
    assert {key: checkpoint[key] for key in wanted} == wanted


def test_a_server_that_takes_its_time_ends_the_whole_check(head_apart: Path) -> None:
    with serving(head_apart) as server:
        server.faults.drips[MTP_FILE] = "body"
        report = check(server.url, vllm="0.32", deadline=1)
    assert report.verdict == "unreadable"
    assert "all requests together took the 1 s allowed" in report.findings[0].message
    assert "--deadline" in report.findings[0].remedy


@pytest.mark.parametrize("tags", [['"one"', '"two"'], ['"one"'] * 3 + ['"two"']])
def test_a_file_that_changes_between_two_requests_is_no_verdict(head_apart: Path, tags: list[str]) -> None:
    with serving(head_apart) as server:
        server.faults.etags[MTP_FILE] = list(tags)
        report = check(server.url, vllm="0.32")
    assert report.verdict == "unreadable"
    assert "changed while it was read" in report.findings[0].message


@pytest.mark.parametrize("tags", [['"one"'], ['W/"one"', 'W/"two"']])
def test_a_file_that_keeps_its_tag_is_read(head_apart: Path, tags: list[str]) -> None:
    with serving(head_apart) as server:
        server.faults.etags[MTP_FILE] = list(tags)
        assert check(server.url, vllm="0.32").verdict == "serves"


def test_the_line_to_serve_an_address_names_a_folder(head_apart: Path) -> None:
    """vLLM takes folders and hub ids; of an address it says that it is neither."""
    with serving(head_apart) as server:
        server.root = "/files/My-Model/"
        report = check(f"{server.url}/files/My-Model", vllm="0.32")
        assert report.checkpoint is not None
        assert must_be_downloaded(report.checkpoint)
        assert serve_arguments(report.checkpoint)[0] == "./My-Model"


@pytest.mark.parametrize(
    ("location", "arguments"),
    [
        ("OWNER/NAME", ["OWNER/NAME"]),
        ("OWNER/NAME@v1", ["OWNER/NAME", "--revision", "v1"]),
        ("https://huggingface.co/OWNER/NAME/resolve/main", ["OWNER/NAME"]),
        ("https://huggingface.co/OWNER/NAME/resolve/abc", ["OWNER/NAME", "--revision", "abc"]),
        ("https://example.org", ["./checkpoint"]),
    ],
)
def test_the_line_to_serve_names_the_model_as_vllm_does(
    head_apart: Path, location: str, arguments: list[str]
) -> None:
    with serving(head_apart) as server:
        checkpoint = Checkpoint.read(HttpFiles(server.url, location=location))
        assert serve_arguments(checkpoint, drafts=0, chat=False)[: len(arguments)] == arguments
