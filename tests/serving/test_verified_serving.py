"""Greedy text with the head for verification is the text without, and no other request meets that head."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.serving.verified import kinds

pytestmark = pytest.mark.engine

MINI = Path(__file__).parents[2] / "bench" / "mini" / "checkpoint"
WHOLE_HEAD = [name for name in kinds() if name not in ("one", "several", "one of two sampled")]


@pytest.fixture(scope="module")
def said(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    out = tmp_path_factory.mktemp("verified") / "out.json"
    command = [sys.executable, "-m", "tests.serving.verified", str(MINI), str(out)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, (done.stdout + done.stderr)[-4000:]
    line = "greedy steps of up to 64 rows verify with drafts' copy of the output head"
    assert line in done.stdout + done.stderr
    answer: dict[str, Any] = json.loads(out.read_text())
    assert answer["attached"]
    return answer


@pytest.mark.parametrize("kind", kinds())
def test_the_text_is_the_same(said: dict[str, Any], kind: str) -> None:
    assert said[kind]["settled"] == said[kind]["stock"]
    assert all(said[kind]["stock"])


@pytest.mark.parametrize(("kind", "least"), [("one", 32), ("several", 32 + 20)])
def test_greedy_steps_meet_the_head(said: dict[str, Any], kind: str, least: int) -> None:
    assert said[kind]["rows"] >= least


@pytest.mark.parametrize("kind", WHOLE_HEAD)
def test_requests_that_look_at_other_logits_never_do(said: dict[str, Any], kind: str) -> None:
    assert said[kind]["rows"] == 0
