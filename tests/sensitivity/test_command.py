"""``qwen36 sensitivity``: what it writes, and what it refuses before anything long starts."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
from typer.testing import CliRunner

from gptq_hybrid.cli.app import build_app
from gptq_hybrid.common.errors import HybridError
from gptq_hybrid.demo.builder import DemoCheckpoint
from gptq_hybrid.recipes import load_recipe
from gptq_hybrid.sensitivity import read_sensitivity

Command = Callable[..., str]


@pytest.fixture
def command(original: DemoCheckpoint, tmp_path: Path) -> Command:
    """Run the command on the constructed checkpoint; what it refuses is raised."""
    data = tmp_path / "texts.jsonl"
    data.write_text(json.dumps({"text": "One module at a time, and all the others as they are."}) + "\n")

    def run(*arguments: str, documents: bool = True) -> str:
        source = ["--data", str(data)] if documents else []
        out = ["--out", str(tmp_path / "out"), "--device", "cpu", "--max-length", "16", "--drafts", "0"]
        result = CliRunner().invoke(
            build_app(), ["sensitivity", str(original.path), *source, *out, *arguments]
        )
        if isinstance(result.exception, HybridError):
            raise result.exception
        assert result.exit_code == 0, result.output
        return result.stdout

    return run


def test_json_picture_and_recipe_are_written(command: Command, tmp_path: Path) -> None:
    recipe = tmp_path / "mine.toml"
    printed = command("--json", "--recipe-out", str(recipe), "--budget", "3%")
    scanned = read_sensitivity(tmp_path / "out" / "sensitivity.json")
    assert json.loads(printed)["result"] == json.loads((tmp_path / "out" / "sensitivity.json").read_text())
    assert scanned.forms == ("rtn4", "rtn8")
    assert (tmp_path / "out" / "sensitivity.png").is_file()
    assert load_recipe(recipe).settings["bits"] == 4


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--budget", "1MB"), "go together"),
        (("--recipe-out", "r.toml"), "go together"),
        (("--recipe-out", "r.json", "--budget", "1MB"), "does not end in .toml"),
        (("--recipe-out", "r.toml", "--budget", "lots"), "is no size"),
        (("--recipe-out", "r.toml", "--budget", "1MB", "--base", "nobody"), "nobody"),
    ],
)
def test_what_is_wrong_with_a_recipe_is_said_before_the_scan(
    command: Command, tmp_path: Path, arguments: tuple[str, ...], message: str
) -> None:
    with pytest.raises(HybridError, match=message):
        command(*arguments)
    assert not (tmp_path / "out").exists()


def test_bits_that_the_base_recipe_needs_are_asked_for_before_the_scan(
    command: Command, tmp_path: Path
) -> None:
    with pytest.raises(HybridError, match="4 bits"):
        command("--bits", "8", "--recipe-out", str(tmp_path / "r.toml"), "--budget", "1MB")
    assert not (tmp_path / "out").exists()


def test_documents_are_asked_for(command: Command) -> None:
    with pytest.raises(HybridError, match="no documents"):
        command(documents=False)
