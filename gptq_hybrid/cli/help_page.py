"""Write ``HELP.md``, the help of every command, beside this file: ``python -m gptq_hybrid.cli.help_page``."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import redirect_stdout
from io import StringIO
from pathlib import Path
from typing import Any

import typer

from . import build_app

PAGE = Path(__file__).with_name("HELP.md")
PROGRAM = "qwen36"
# What the program takes in a terminal of 80 columns or more.
_WIDTH = 78
_HEAD = """# Command-line help

The program's own `--help`, written by `uv run python -m gptq_hybrid.cli.help_page`; a test compares the two.
"""


def commands(command: Any, words: tuple[str, ...] = ()) -> Iterator[tuple[str, ...]]:
    """Yield the words of ``command`` and of every command below it, groups before their members."""
    yield words
    for name, member in getattr(command, "commands", {}).items():
        yield from commands(member, (*words, name))


def help_text(command: Any, words: tuple[str, ...]) -> str:
    """Return what ``qwen36 WORDS --help`` prints, without trailing spaces."""
    out = StringIO()
    with redirect_stdout(out):
        command.main(
            [*words, "--help"], prog_name=PROGRAM, standalone_mode=False, terminal_width=_WIDTH, color=False
        )
    return "\n".join(line.rstrip() for line in out.getvalue().strip().splitlines())


def whole_command() -> Any:
    """Return the whole program as one command, every member loaded."""
    root: Any = typer.main.get_command(build_app())
    root.load_all()
    return root


def help_page() -> str:
    """Return the page: a section a command, with its help in a fenced block."""
    root = whole_command()
    parts = [_HEAD]
    for words in commands(root):
        line = " ".join((PROGRAM, *words))
        parts.append(f"## {line}\n\n```text\n$ {line} --help\n{help_text(root, words)}\n```\n")
    return "\n".join(parts)


def main() -> None:
    """Write the page."""
    PAGE.write_text(help_page(), encoding="utf-8")
    sys.stdout.write(f"{PAGE}\n")


if __name__ == "__main__":
    main()
