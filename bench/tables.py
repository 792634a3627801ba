"""What all tables of results share."""

from __future__ import annotations

from bench.results import Json


def where(environment: Json) -> str:
    """Card and versions, in a line."""
    versions = [f"{name} {environment[name]}" for name in ("vllm", "torch", "python") if name in environment]
    return f"{environment['device']}, {', '.join(versions)}"


def table(header: list[str], rows: list[list[str]]) -> str:
    """Markdown; the first column to the left."""
    line = "|" + "|".join(["---"] + ["---:"] * (len(header) - 1)) + "|"
    return "\n".join(
        ["| " + " | ".join(header) + " |", line, *("| " + " | ".join(row) + " |" for row in rows)]
    )
