"""HELP.md is the program's own help. To write it anew: uv run python -m gptq_hybrid.cli.help_page"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import typer

from gptq_hybrid.cli import build_app
from gptq_hybrid.cli.help_page import PAGE, commands, help_page, help_text, whole_command


def test_the_page_shows_the_current_help() -> None:
    assert PAGE.read_text(encoding="utf-8") == help_page(), (
        "HELP.md is out of date; run: uv run python -m gptq_hybrid.cli.help_page"
    )


@pytest.mark.parametrize("words", [(), ("check",)], ids=" ".join)
def test_a_terminal_shows_what_the_page_does(words: tuple[str, ...]) -> None:
    printed = subprocess.run(
        [str(Path(sys.executable).with_name("qwen36")), *words, "--help"],
        env={**os.environ, "COLUMNS": "100", "TERM": "dumb", "NO_COLOR": "1", "TERMINAL_WIDTH": "100"},
        capture_output=True,
        text=True,
        check=True,
    ).stdout
    lines = [line.rstrip() for line in printed.strip().splitlines()]
    assert "\n".join(lines) in PAGE.read_text(encoding="utf-8")


def test_members_of_groups_have_sections_of_their_own() -> None:
    app, group = typer.Typer(), typer.Typer()

    @app.command("alone")
    def alone() -> None:
        """Stand alone."""

    @group.command("inner")
    def inner(number: int = 3) -> None:
        """Be in a group."""

    app.add_typer(group, name="outer")
    root = typer.main.get_command(app)
    assert list(commands(root)) == [(), ("alone",), ("outer",), ("outer", "inner")]
    assert "--number" in help_text(root, ("outer", "inner"))


def test_the_page_names_every_command_once() -> None:
    text = PAGE.read_text(encoding="utf-8")
    for words in commands(whole_command()):
        assert text.count(f"\n## {' '.join(('qwen36', *words))}\n") == 1


def test_the_list_of_commands_says_what_each_says_of_itself() -> None:
    lazy: Any = typer.main.get_command(build_app())
    for words in commands(whole_command()):
        if len(words) == 1 and words != ("tune",):
            whole = whole_command().commands[words[0]]
            assert lazy.commands[words[0]].help == whole.help.split("\n")[0]


def test_the_list_of_commands_is_cut_nowhere() -> None:
    assert "..." not in help_text(whole_command(), ()).partition("Commands:")[2]
    assert "..." not in help_text(whole_command(), ("tune",)).partition("Commands:")[2]
