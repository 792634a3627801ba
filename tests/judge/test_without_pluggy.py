"""Without a library that the plugin needs vLLM starts all the same: features are off, and each says so once."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from gptq_hybrid.demo.builder import DemoCheckpoint

from .judge import unavailable
from .made import Made, build

pytestmark = [
    pytest.mark.engine,
    pytest.mark.skipif(unavailable() is not None, reason=str(unavailable())),
]
_LOAD = """
import logging, sys
sys.modules["pluggy"] = None  # as where it is not installed
from tests.judge import loading
loading.install()
log = logging.getLogger("vllm.qwen36")
log.warning = lambda text, *names: print(text % names)  # the judge turns logs off
from vllm_qwen36_plugin import register
register()
loading._fronts = lambda *_: None
judgement = loading.judge_here(sys.argv[1])
print("FINE", judgement.fine, judgement.target, judgement.draft, judgement.said)
"""


def test_target_and_draft_are_loaded(original: DemoCheckpoint, tmp_path: Path) -> None:
    folder = build(Made(), tmp_path / "made", original.path)
    ended = subprocess.run(
        [sys.executable, "-c", _LOAD, str(folder)],
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
        cwd=Path(__file__).parents[2],
    )
    said = ended.stdout + ended.stderr
    assert "FINE True Qwen3_5ForConditionalGeneration Qwen3_5MTP" in said, said[-3000:]
    for feature in ("the MTP check before start", "the options for drafts", "the MTP check in the worker"):
        assert said.count(f"{feature} is off because") == 1, said[-3000:]
