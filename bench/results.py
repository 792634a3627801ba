"""Results as JSON files: of one measurement, or of variants whose processes share settings.

The JSON stays small and can be read: a list or object of numbers is one line.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

Json = dict[str, Any]


def load(path: Path) -> Json | None:
    """The results in a file; None if it was not measured yet."""
    return json.loads(path.read_text(encoding="utf-8")) if path.is_file() else None


def dumps(value: Any, indent: int = 0) -> str:
    """JSON; a container with another in it has a line for each member, any other is one line without spaces."""
    members: list[Any] = (
        list(value.values()) if isinstance(value, dict) else value if isinstance(value, list) else []
    )
    if not any(isinstance(member, dict | list) for member in members):
        return json.dumps(value, separators=(",", ":"), ensure_ascii=False)
    inner = " " * (indent + 1)
    keys = [f"{json.dumps(key, ensure_ascii=False)}: " for key in value] if isinstance(value, dict) else []
    lines = [
        f"{inner}{key}{dumps(member, indent + 1)}"
        for key, member in zip(keys or [""] * len(members), members, strict=True)
    ]
    opening, closing = "{}" if isinstance(value, dict) else "[]"
    return f"{opening}\n" + ",\n".join(lines) + f"\n{' ' * indent}{closing}"


def save(path: Path, result: Mapping[str, Any]) -> None:
    """Write the results; under a temporary name first, so that a call cut off leaves the previous file."""
    from gptq_hybrid.common.atomic import write_text_atomic

    write_text_atomic(path, dumps(dict(result)) + "\n")


def merge(
    path: Path, settings: Mapping[str, Any], variants: Sequence[str], variant: str, run: Mapping[str, Any]
) -> Json:
    """Put one run into the file, in the order of ``variants``; drop runs made with other settings."""
    before = load(path)
    runs = before["runs"] if before and before["settings"] == settings else {}
    merged = {**runs, variant: run}
    result: Json = {
        "settings": dict(settings),
        "runs": {name: merged[name] for name in variants if name in merged},
    }
    save(path, result)
    return result


def without(path: Path, variants: Sequence[str]) -> None:
    """Take runs out of the file: one that fails now must not look like one that was made."""
    before = load(path)
    if before:
        before["runs"] = {name: run for name, run in before["runs"].items() if name not in variants}
        save(path, before)
