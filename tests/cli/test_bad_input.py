"""Bad input: one clear error, exit code 2, nothing written."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest

from gptq_hybrid.demo.builder import DemoCheckpoint


def qwen36(*arguments: str | Path, cwd: Path) -> subprocess.CompletedProcess[str]:
    command = [str(Path(sys.executable).with_name("qwen36")), *map(str, arguments)]
    return subprocess.run(command, cwd=cwd, capture_output=True, text=True, check=False, timeout=300)


def refused(ended: subprocess.CompletedProcess[str], *words: str) -> None:
    assert ended.returncode == 2, ended
    assert ended.stderr.count("Error") == 1
    assert "Traceback" not in ended.stderr + ended.stdout
    flat = " ".join(ended.stderr.split())
    for word in words:
        assert word in flat, ended.stderr


@pytest.fixture
def here(tmp_path: Path) -> Path:
    """An empty working folder; tests assert it stays so."""
    folder = tmp_path / "here"
    folder.mkdir()
    return folder


def test_a_source_that_does_not_exist(here: Path) -> None:
    refused(qwen36("quantize", "./nowhere", "out", cwd=here), "nowhere", "is not a folder")
    assert list(here.iterdir()) == []


def test_a_long_path_stays_in_one_line(here: Path) -> None:
    path = here / ("folder-" * 15) / "nowhere"
    assert f"Error: {path}" in qwen36("quantize", path, "out", cwd=here).stderr


def test_a_source_of_another_architecture(here: Path, tmp_path: Path) -> None:
    source = tmp_path / "llama"
    source.mkdir()
    (source / "config.json").write_text(
        json.dumps({"model_type": "llama", "architectures": ["LlamaForCausalLM"]})
    )
    refused(qwen36("quantize", source, "out", cwd=here), "'llama'", "qwen3_5")
    assert list(here.iterdir()) == []


def test_a_source_that_is_quantized_already(here: Path, original: DemoCheckpoint, tmp_path: Path) -> None:
    source = Path(shutil.copytree(original.path, tmp_path / "source"))
    (source / "quantize_config.json").write_text("{}")
    refused(qwen36("quantize", source, "out", cwd=here), "quantized already")
    assert list(here.iterdir()) == []


def test_a_source_without_its_head(here: Path, build: Callable[..., DemoCheckpoint]) -> None:
    refused(qwen36("quantize", build(mtp="none").path, "out", cwd=here), "MTP head", "--no-mtp")
    assert list(here.iterdir()) == []


def test_a_source_that_lacks_a_shard(here: Path, original: DemoCheckpoint, tmp_path: Path) -> None:
    source = Path(shutil.copytree(original.path, tmp_path / "source"))
    (source / "model-00002-of-00002.safetensors").unlink()
    refused(qwen36("quantize", source, "out", cwd=here), "model-00002-of-00002.safetensors")
    assert list(here.iterdir()) == []


def test_a_target_that_exists(here: Path, original: DemoCheckpoint) -> None:
    (here / "out").mkdir()
    (here / "out" / "mine").write_text("x")
    refused(qwen36("quantize", original.path, "out", cwd=here), "out exists already")
    assert [p.name for p in (here / "out").iterdir()] == ["mine"]


@pytest.mark.parametrize(
    ("lines", "words"),
    [
        (['{"text": "long enough to be a row of calibration text"}', "{"], ["line 2", "not valid JSON"]),
        (['{"text": "fine, this one"}', '{"words": 3}'], ["line 2", "neither"]),
        (['{"messages": [{"role": "user"}]}'], ["line 1", "content"]),
        (["[1, 2]"], ["line 1", "not a JSON object"]),
        ([], ["no rows"]),
        (['{"text": "short"}'], ["10 tokens"]),
    ],
)
def test_a_bad_calibration_file_is_named_by_line(
    here: Path, original: DemoCheckpoint, tmp_path: Path, lines: Sequence[str], words: Sequence[str]
) -> None:
    rows = tmp_path / "rows.jsonl"
    rows.write_text("\n".join(lines))
    refused(qwen36("quantize", original.path, "out", "--calibration", rows, cwd=here), *words)
    assert list(here.iterdir()) == []


def test_an_unknown_recipe(here: Path, original: DemoCheckpoint) -> None:
    refused(
        qwen36("quantize", original.path, "out", "--recipe", "grandma", cwd=here),
        "grandma",
        "reference, static",
    )


def test_a_calibration_that_is_nothing(here: Path, original: DemoCheckpoint) -> None:
    refused(qwen36("quantize", original.path, "out", "--calibration", "rows", cwd=here), "neither a file nor")
