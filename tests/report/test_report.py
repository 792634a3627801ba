"""What the processes of a server note reaches /metrics, whatever Prometheus's mode, and never disturbs a server."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

import pytest
from prometheus_client import REGISTRY, generate_latest

from gptq_hybrid.live import Scrape, read
from vllm_qwen36_plugin import features
from vllm_qwen36_plugin.report import note, notes, noting, publish


@pytest.fixture(autouse=True)
def clean(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """No notes of other tests, no file, and nothing left in the registry."""
    monkeypatch.setattr(notes, "_kept", {})
    monkeypatch.delenv(notes.FILE, raising=False)
    monkeypatch.delenv(noting.MULTIPROCESS, raising=False)
    # That of a test before, which had vLLM make a config in this process.
    others = publish._collector
    if others.file is not None:
        REGISTRY.unregister(others)
    collector = publish.NotesCollector()
    monkeypatch.setattr(publish, "_collector", collector)
    yield
    if collector.file is not None:
        REGISTRY.unregister(collector)
        collector.file.unlink(missing_ok=True)
    if others.file is not None:
        REGISTRY.register(others)
    os.environ.pop(notes.FILE, None)


def shown() -> dict[str, tuple[str, str]]:
    look = read(Scrape("http://h", generate_latest(REGISTRY).decode(), None))
    assert look.plugin is not None
    return {state.path: (state.state, state.detail) for state in look.paths}


def in_another_process(program: str, **variables: str) -> str:
    run = subprocess.run(
        [sys.executable, "-c", program],
        env={**os.environ, **variables},
        capture_output=True,
        text=True,
        check=True,
        timeout=120,
    )
    return run.stdout


def test_notes_of_a_worker_reach_the_metrics_of_the_front() -> None:
    publish.publish({"version": "9"})
    assert shown() == {}
    note("prefill", "auto")
    in_another_process(
        "from vllm_qwen36_plugin.report import note\n"
        "note('drafts', 'w8', 'half of \"them\"\\n, all')\n"
        "note('prefill', 'exact', 'measured')"
    )
    assert shown() == {"prefill": ("exact", "measured"), "drafts": ("w8", 'half of "them"\n, all')}


def test_a_second_engine_in_a_process_starts_anew() -> None:
    publish.publish({"version": "9"})
    first = os.environ[notes.FILE]
    note("drafts", "w8")
    publish.publish({"version": "10"})
    assert shown() == {}
    assert not Path(first).exists()
    look = read(Scrape("http://h", generate_latest(REGISTRY).decode(), None))
    assert look.plugin is not None
    assert look.plugin["version"] == "10"


def test_the_file_ends_with_the_process_that_made_it() -> None:
    program = (
        "from vllm_qwen36_plugin.report import publish\n"
        "import os\n"
        "publish.publish({})\n"
        "print(os.environ['QWEN36_NOTES'])"
    )
    assert not Path(in_another_process(program).strip()).exists()


def test_several_api_servers_show_the_notes_of_all_processes(tmp_path: Path) -> None:
    variables = {noting.MULTIPROCESS: str(tmp_path)}
    in_another_process(
        "from vllm_qwen36_plugin.report import publish\npublish.publish({'version': '9'})", **variables
    )
    in_another_process("from vllm_qwen36_plugin.report import note\nnote('drafts', 'w8', 'x')", **variables)
    text = in_another_process(
        "from prometheus_client import CollectorRegistry, generate_latest, multiprocess\n"
        "registry = CollectorRegistry()\n"
        "multiprocess.MultiProcessCollector(registry)\n"
        "print(generate_latest(registry).decode())",
        **variables,
    )
    look = read(Scrape("http://h", text, None))
    assert look.plugin is not None
    assert look.plugin["version"] == "9"
    assert [(state.path, state.state) for state in look.paths] == [("drafts", "w8")]


def test_a_note_never_raises(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv(notes.FILE, str(tmp_path / "absent" / "file"))
    note("drafts", "w8", ValueError("x" * 5000))
    (kept,) = notes.own_notes()
    assert len(kept.detail) == 1000


def test_a_line_cut_short_is_left_out(tmp_path: Path) -> None:
    file = tmp_path / "notes"
    file.write_text('{"path": "a", "state": "on", "detail": ""}\n[1]\n{"path": "b", "sta')
    assert [made.path for made in notes.read_notes(file)] == ["a"]
    assert notes.read_notes(tmp_path / "absent") == []


def test_notes_before_the_start_are_taken_along(monkeypatch: pytest.MonkeyPatch) -> None:
    note("act order", "off", "vLLM moved")
    monkeypatch.setattr(publish, "_info", lambda config: {"version": "9"})
    publish.before_start(object())
    assert shown() == {"act order": ("off", "vLLM moved")}


def test_a_report_that_breaks_lets_the_server_start(caplog: pytest.LogCaptureFixture) -> None:
    publish.before_start(object())
    assert "/metrics will not show it" in caplog.text


def test_what_is_published_of_a_server_is_what_it_was_started_with() -> None:
    config = SimpleNamespace(
        speculative_config=SimpleNamespace(num_speculative_tokens=3),
        additional_config={"qwen36": {"prefill": "off"}, "other": {"secret": 1}},
        model_config=SimpleNamespace(model="M"),
        scheduler_config=SimpleNamespace(max_num_seqs=4),
    )
    publish.before_start(config)
    look = read(Scrape("http://h", generate_latest(REGISTRY).decode(), None))
    assert look.plugin is not None
    told = {key: look.plugin[key] for key in ("model", "drafts", "max_num_seqs", "options")}
    assert told == {"model": "M", "drafts": "3", "max_num_seqs": "4", "options": '{"prefill": "off"}'}


def test_a_feature_that_cannot_be_installed_is_told_and_noted(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken() -> None:
        raise ValueError("vLLM moved")

    table = (features.Feature("good", lambda: None), features.Feature("bad", broken))
    other = "cuda" if features._platform() != "cuda" else "cpu"
    monkeypatch.setattr(features, "FEATURES", (*table, features.Feature("elsewhere", broken, other)))
    monkeypatch.setattr(features, "_warned", set())
    installed = features.install_features()
    assert [(f.name, f.on) for f in installed] == [("good", True), ("bad", False), ("elsewhere", False)]
    assert installed[1].why == "vLLM moved"
    assert other.upper() in installed[2].why
    assert [(made.path, made.state) for made in notes.own_notes()] == [("bad", "off")]
