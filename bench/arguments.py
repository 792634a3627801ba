"""The command line of a script: the module's text is its help."""

from __future__ import annotations

from argparse import ArgumentParser, RawDescriptionHelpFormatter
from pathlib import Path


def command_line(text: str | None, *paths: str) -> ArgumentParser:
    """A parser that shows ``text``, with positional ``paths``."""
    made = ArgumentParser(description=text, formatter_class=RawDescriptionHelpFormatter)
    for path in paths:
        made.add_argument(path, type=Path)
    return made
