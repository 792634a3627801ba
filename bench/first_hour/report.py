"""The page's table and transcript: ``python -m bench.pages first_hour``."""

from __future__ import annotations

from pathlib import Path

from bench.pages import Page
from bench.results import Json
from bench.tables import table, where

HERE = Path(__file__).parent
RESULT = HERE / "transcript.json"


def transcript(result: Json) -> str:
    """Every command with what it printed."""
    head = "{watched}, {seconds} s, exit {code}:\n\n```text\n$ {command}\n"
    return "\n".join(head.format(**s) + "\n".join(s["lines"]) + "\n```\n" for s in result["hour"])


def mistakes(result: Json) -> str:
    """A row a mistake: its cost and its first line."""
    rows = [
        [f"`{s['command']}`", f"{s['seconds']:.1f} s", str(s["code"]), s["lines"][0]]
        for s in result["mistakes"]
    ]
    return table(["typed", "after", "exit", "first line"], rows, where(result["machine"]))


PAGE = Page(HERE / "README.md", tables={"mistakes": (mistakes, RESULT), "transcript": (transcript, RESULT)})
