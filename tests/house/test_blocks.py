"""What README.md and the rooms' pages tell people to type works: Python blocks and the commands of the program.

Names of models and files in them stand for small ones here; nothing else is changed.
"""

from __future__ import annotations

import ast
import importlib
import json
import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from gptq_hybrid.demo.builder import DemoCheckpoint
from gptq_hybrid.doctor import check
from tests.plan.test_explain import old_log

from .pages import README, ROOT, room_pages

ORIGINAL, CHECKPOINT = "Qwen/Qwen3.6-27B", "Qwen3.6-27B-W4A16-G128"


def blocks(page: Path, language: str) -> list[str]:
    return re.findall(
        rf"^```{language}\n(.*?)^```", page.read_text(encoding="utf-8"), re.MULTILINE | re.DOTALL
    )


PYTHON = [
    pytest.param(block, id=f"{page.parent.name}-{number}")
    for page in (README, *room_pages().values())
    for number, block in enumerate(blocks(page, "python"))
]


@pytest.mark.parametrize("block", PYTHON)
def test_what_a_python_block_imports_exists(block: str) -> None:
    for node in ast.walk(ast.parse(block)):
        if isinstance(node, ast.ImportFrom):
            module = importlib.import_module(node.module or "")
            for alias in node.names:
                if not hasattr(module, alias.name):
                    importlib.import_module(f"{node.module}.{alias.name}")
        elif isinstance(node, ast.Import):
            for alias in node.names:
                importlib.import_module(alias.name)


def run(block: str, **names: Any) -> dict[str, Any]:
    space = dict(names)
    exec(compile(block, "README.md", "exec"), space)
    return space


def test_the_readme_s_python_quantizes_a_checkpoint_that_serves(
    original: DemoCheckpoint, tmp_path: Path
) -> None:
    (block,) = blocks(README, "python")
    target = tmp_path / "quantized"
    replaced = {
        f'"{ORIGINAL}"': repr(str(original.path)),
        f'"{CHECKPOINT}"': repr(str(target)),
        '"mix:broad"': '"demo"',
        "samples=512, max_length=2048": "samples=4, max_length=64",
    }
    for old, new in replaced.items():
        assert old in block
        block = block.replace(old, new)
    run(block)
    report = check(target)
    assert report.verdict == "serves"
    assert not report.errors


def test_the_python_of_quantize_takes_paths_as_text(
    original: DemoCheckpoint, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import gptq_hybrid.quantize as room

    (block,) = blocks(ROOT / "gptq_hybrid" / "quantize" / "README.md", "python")
    planned: list[Any] = []
    monkeypatch.setattr(room, "plan_run", lambda request: planned.append(request) or request)
    monkeypatch.setattr(room, "quantize", lambda plan: plan)
    run(block)
    (request,) = planned
    assert request.source == Path("Qwen3.6-27B")
    assert request.target.name == "Qwen3.6-27B-W4A16-G128"


def commands(page: Path, program: str) -> Iterator[list[str]]:
    """Commands of a program in the page's shell blocks, as words; a line that goes on is joined."""
    for block in blocks(page, "bash"):
        for line in block.replace("\\\n", " ").splitlines():
            words = shlex.split(line, comments=True)
            if words[:1] == [program]:
                yield words


@pytest.fixture
def folder(
    quantized: Callable[..., Any], original: DemoCheckpoint, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Path:
    """A folder in which the names of the README stand for the constructed checkpoint and small files."""
    # Written by the command, and so with a log.
    for name in (CHECKPOINT, "FOLDER", "CHECKPOINT", "ANOTHER", "OWNER/NAME"):
        shutil.copytree(quantized("static").path, tmp_path / name)
    for name in (ORIGINAL, "OWNER/ORIGINAL"):
        shutil.copytree(original.path, tmp_path / name)
    rows = [
        {"messages": [{"role": "assistant", "content": f"Reply {n}: tokens and drafts."}]} for n in range(40)
    ]
    text = "\n".join(json.dumps(row) for row in rows)
    (tmp_path / "replies.jsonl").write_text(text)
    (tmp_path / "start.log").write_text(old_log(1.0, 1_000, 2_048).replace(f"./{CHECKPOINT}", CHECKPOINT))
    (tmp_path / "evaluation").mkdir()
    (tmp_path / "evaluation" / "chat.jsonl").write_text(text)
    return tmp_path


# What these take for granted is tested elsewhere: a GPU, a server, a download, half an hour.
_NOT_RUN = {"quantize", "demo", "tune", "sensitivity", "eval", "doctor", "env", "receipt", "card"}


def test_the_readme_s_commands_run(folder: Path) -> None:
    lines = [words for words in commands(README, "qwen36") if words[1] not in _NOT_RUN]
    assert {words[1] for words in lines} >= {"check", "repair", "losses", "draft-vocab"}
    for words in lines:
        program = [str(Path(sys.executable).with_name("qwen36")), *words[1:]]
        ended = subprocess.run(program, cwd=folder, capture_output=True, text=True, timeout=300, check=False)
        assert "Traceback" not in ended.stderr, (words, ended.stderr)
        expected = (0, 1) if words[1] == "repair" or "--vllm" in words else (0,)
        assert ended.returncode in expected, (words, ended.stdout, ended.stderr)


def test_vllm_knows_every_flag_of_the_readme() -> None:
    lines = [words[2:] for words in commands(README, "vllm")]
    assert len(lines) >= 2
    program = (
        "import json, sys\n"
        "from vllm.utils.argparse_utils import FlexibleArgumentParser\n"
        "from vllm.entrypoints.launchers.cli_args import make_arg_parser\n"
        "parser = make_arg_parser(FlexibleArgumentParser())\n"
        "for line in json.loads(sys.argv[1]):\n"
        "    parsed = parser.parse_args(line)\n"
        "    assert parsed.speculative_config['method'] == 'mtp', parsed\n"
    )
    ended = subprocess.run(
        [sys.executable, "-c", program, json.dumps(lines)],
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert ended.returncode == 0, ended.stderr[-3000:]
