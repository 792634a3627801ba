"""Where commands print: stdout for results, stderr for all else; colours, width, quiet, the closing "Next:" lines.

On a terminal text is wrapped at its width. Off a terminal nothing is folded: a path or a command that was broken in
two lines can neither be copied nor searched for.
"""

from __future__ import annotations

import os
import sys
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import IO, Any

from rich.console import Console

from .text import printable

# Columns of a file or pipe: more than any table has.
UNFOLDED = 1_000


class ColorWhen(StrEnum):
    """When to print in colour: ``AUTO`` on a terminal, unless NO_COLOR is set."""

    AUTO = "auto"
    ALWAYS = "always"
    NEVER = "never"


@dataclass
class Settings:
    """How this process prints; one object, :data:`SETTINGS`, which every command sets before it runs.

    Attributes:
        command: what is run, such as ``"check"``; ``""`` before a command was chosen.
        as_json: whether stdout is JSON and nothing else.
        quiet: whether to leave out progress, notes and the closing "Next:" lines.
        color: when to print in colour.
    """

    command: str = ""
    as_json: bool = False
    quiet: bool = False
    color: ColorWhen = ColorWhen.AUTO


SETTINGS = Settings()


@dataclass(frozen=True, slots=True)
class Step:
    """What to do next: ``what`` in a few words without a final stop, and the command that does it, if one does."""

    what: str
    command: str | None = None


class Screen(Console):
    """A console that never cuts a line off, and folds none where no terminal is.

    Attributes:
        log_file: where everything that is not printed here goes meanwhile, if anywhere.
    """

    log_file: Path | None = None

    def __init__(self, file: IO[str]) -> None:
        terminal = file.isatty()
        super().__init__(
            file=file,
            # FORCE_COLOR asks for colours, not for bars that move in a log of CI.
            force_terminal=terminal,
            width=None if terminal else UNFOLDED,
            color_system=_color_system(terminal),
            no_color=not _colored(terminal),
        )

    def print(self, *objects: Any, **options: Any) -> None:
        """Print as rich does, but without highlighting of numbers, and without cutting long lines off."""
        super().print(*objects, **{"highlight": False, "crop": False, **options})

    def say(self, text: str, style: str | None = None) -> None:
        """Print text without markup, control characters spelt out; only the terminal itself breaks it."""
        self.print(printable(text), style=style, markup=False, soft_wrap=True)


def _colored(terminal: bool) -> bool:
    if SETTINGS.color is not ColorWhen.AUTO:
        return SETTINGS.color is ColorWhen.ALWAYS
    if os.environ.get("NO_COLOR"):
        return False
    return terminal or bool(os.environ.get("FORCE_COLOR"))


def _color_system(terminal: bool) -> Any:
    if not _colored(terminal):
        return None
    # Off a terminal there is nothing to detect: the sixteen colours that everything understands.
    return "auto" if terminal and SETTINGS.color is ColorWhen.AUTO else "standard"


def out() -> Screen:
    """Return a screen on stdout, for results; with ``--json`` on stderr, as stdout is JSON alone."""
    return Screen(sys.stderr if SETTINGS.as_json else sys.stdout)


def err() -> Screen:
    """Return a screen on stderr, for errors, warnings, notes and progress."""
    return Screen(sys.stderr)


def note(text: str) -> None:
    """Print a note on stderr; ``--quiet`` leaves it out."""
    if not SETTINGS.quiet:
        err().say(text)


def warn(text: str) -> None:
    """Print a warning on stderr."""
    err().print(f"[yellow]warning:[/] {plain(text)}", soft_wrap=True)


def print_error(message: str, remedy: str | None, *, screen: Screen | None = None) -> None:
    """Print an error meant for people: what is wrong, then ``help:`` and what to do."""
    screen = screen or err()
    screen.print(f"[bold red]Error:[/] {plain(message)}", soft_wrap=True)
    if remedy:
        screen.print(f"[bold]help:[/] {plain(remedy)}", soft_wrap=True)


def print_next(*steps: Step, screen: Screen | None = None) -> None:
    """Close a command's output with what to do next; ``--quiet`` and ``--json`` leave it out.

    Each command has a line of its own, to be copied whole.
    """
    if SETTINGS.quiet or SETTINGS.as_json or not steps:
        return
    screen = screen or out()
    for number, step in enumerate(steps):
        lead = "Then" if number else "Next:"
        screen.print(f"[bold]{lead}[/] {plain(step.what)}{':' if step.command else ''}", soft_wrap=True)
        if step.command:
            screen.say(f"  {step.command}")


def plain(text: str) -> str:
    """Make text from a checkpoint safe to print: no markup, and no control character that moves the cursor."""
    from rich.markup import escape

    return escape(printable(text))
