"""The demo's run around quantizing and serving, which stand-ins take the place of."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from gptq_hybrid.calibration import load_rows
from gptq_hybrid.common.errors import CheckpointError, HybridError
from gptq_hybrid.common.vllm_server import Acceptance
from gptq_hybrid.demo import DemoCheckpoint, DemoSpec, run
from gptq_hybrid.demo.text import demo_conversations


class FakeServer:
    """Replies with ``text`` to every prompt."""

    def __init__(self, text: str, accepted: int) -> None:
        self.text = text
        self.accepted = accepted

    def chat(self, content: str, *, max_tokens: int) -> dict[str, Any]:
        return {"choices": [{"message": {"content": self.text}}]}

    def acceptance(self) -> Acceptance:
        return Acceptance(drafts=10, proposed=10, accepted=self.accepted, per_position=(self.accepted,))


@pytest.fixture
def demo(
    separate: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> Callable[..., tuple[run.DemoReport, list[str]]]:
    """Run the demo with a server that replies with ``text``; the report, and what was announced."""

    def start(text: str, *, accepted: int = 10, target: Path = separate) -> tuple[run.DemoReport, list[str]]:
        @contextmanager
        def vllm_server(*_: Any, **__: Any) -> Iterator[FakeServer]:
            yield FakeServer(text, accepted)

        result = SimpleNamespace(target=target, source_bytes=2, target_bytes=1)
        monkeypatch.setattr(run, "_quantize", lambda *_: result)
        monkeypatch.setattr(run, "vllm_server", vllm_server)
        stages: list[str] = []
        folder = tmp_path / "work"
        folder.mkdir()
        return run.run_demo(folder, recipe="static", on_stage=stages.append), stages

    return start


def constructed(checkpoint: Path) -> str:
    demo = DemoCheckpoint.open(checkpoint)
    return demo.expected_text([demo.loop[-1]], run.MAX_TOKENS)


def test_every_stage_is_announced_timed_and_reported(
    demo: Callable[..., Any], separate: Path, tmp_path: Path
) -> None:
    report, stages = demo(constructed(separate))
    assert report.ok
    assert list(report.seconds) == ["build", "quantize", "start", "complete"]
    assert [stage.split()[0] for stage in stages] == [
        "Building",
        "Quantizing",
        "Starting",
        "Asking",
        "Stopping",
    ]
    written = json.loads((tmp_path / "work" / "report.json").read_text())
    assert written == json.loads(json.dumps(report.to_json()))
    assert written["acceptance_rate"] == 1.0


def test_another_reply_or_no_accepted_draft_is_no_success(demo: Callable[..., Any], separate: Path) -> None:
    report, _ = demo("Something else.")
    assert not report.ok
    assert not any(reply.as_constructed for reply in report.replies)


def test_without_accepted_drafts_the_demo_fails(demo: Callable[..., Any], separate: Path) -> None:
    report, _ = demo(constructed(separate), accepted=0)
    assert all(reply.as_constructed for reply in report.replies)
    assert not report.ok


@pytest.mark.parametrize(("mtp", "message"), [("none", "MTP"), ("inline", "without mtp.safetensors")])
def test_a_faulty_checkpoint_is_an_error_for_people_before_it_is_served(
    demo: Callable[..., Any], build: Callable[..., DemoCheckpoint], mtp: str, message: str
) -> None:
    with pytest.raises(CheckpointError, match=message) as error:
        demo("", target=build(mtp=mtp).path)
    assert "qwen36 check" in (error.value.remedy or "")


@pytest.mark.parametrize(
    "fields",
    [{"hidden_size": 100}, {"num_hidden_layers": 3}, {"mtp": "somewhere"}, {"shards": 0}, {"seed": -1}],
)
def test_a_spec_that_cannot_be_built_is_refused(fields: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=next(iter(fields))):
        DemoSpec(**fields)


def test_demo_is_a_calibration_source() -> None:
    rows = load_rows("demo", 3, 7)
    assert rows == demo_conversations(3, 7)
    assert demo_conversations(5, 7)[:3] == rows
    with pytest.raises(HybridError, match=r"Sources: .*demo"):
        load_rows("no-demo", 1, 0)
