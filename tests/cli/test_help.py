"""The README's account of the command line is the command line's own."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

README = Path(__file__).parents[2] / "README.md"
COMMANDS = ["", "quantize", "losses", "check", "repair", "eval", "sensitivity", "draft-vocab", "demo", "tune"]


def block(command: str) -> str:
    """A fenced block with the help of one command, as it stands in the README."""
    arguments = [word for word in (command, "--help") if word]
    text = subprocess.run(
        [str(Path(sys.executable).with_name("qwen36")), *arguments],
        env={**os.environ, "COLUMNS": "100", "TERM": "dumb", "NO_COLOR": "1", "TERMINAL_WIDTH": "100"},
        capture_output=True,
        text=True,
        check=True,
    ).stdout
    lines = [line.rstrip() for line in text.strip().splitlines()]
    return "\n".join(["```text", f"$ {' '.join(['qwen36', *arguments])}", *lines, "```"])


@pytest.mark.parametrize("command", COMMANDS)
def test_the_readme_shows_the_current_help(command: str) -> None:
    assert block(command) in README.read_text(), (
        f"README.md is out of date; it should hold:\n{block(command)}"
    )


if __name__ == "__main__":
    sys.stdout.write("\n\n".join(block(command) for command in COMMANDS) + "\n")
