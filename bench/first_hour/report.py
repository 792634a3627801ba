"""The page's tables and transcript. No torch here.

python -m bench.pages first_hour
"""

from __future__ import annotations

from pathlib import Path

from bench.pages import Page
from bench.results import Json
from bench.tables import table

HERE = Path(__file__).parent


def transcript(result: Json) -> str:
    """Every command with what it printed."""
    parts = []
    for step in result["hour"]:
        status = f", exit {step['code']}" if step["code"] else ""
        shown = "\n".join([f"$ {step['command']}", *step["lines"]])
        parts.append(f"{step['seconds']} s{status}, {step['watched']}:\n\n```text\n{shown}\n```\n")
    return "\n".join(parts)


def mistakes(result: Json) -> str:
    """A row a mistake: its cost and its first line."""
    rows = [
        [
            f"`{step['command']}`",
            f"{step['seconds']:.1f} s",
            str(step["code"]),
            (step["lines"] or [""])[0].replace("|", "\\|"),
        ]
        for step in result["mistakes"]
    ]
    machine = result["machine"]
    note = f"{machine['device']}; vLLM {machine.get('vllm')}, gptqmodel {machine.get('gptqmodel')}"
    return table(["typed", "after", "exit", "first line"], rows, note)


RESULT = HERE / "transcript.json"
PAGE = Page(HERE / "README.md", tables={"mistakes": (mistakes, RESULT), "transcript": (transcript, RESULT)})
