"""Many small numbers as JSON that stays small and can be read: a list or object of scalars is one line."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any


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
    """In place of ``bench.results.save``, which gives every number a line of its own; ``load`` reads both."""
    from gptq_hybrid.checkpoint._atomic import write_text_atomic

    write_text_atomic(path, dumps(dict(result)) + "\n")
