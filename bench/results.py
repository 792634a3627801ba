"""Results as JSON files: of one measurement, or of variants whose processes share settings."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

Json = dict[str, Any]


def load(path: Path) -> Json | None:
    """The results in a file; None if it was not measured yet."""
    return json.loads(path.read_text(encoding="utf-8")) if path.is_file() else None


def save(path: Path, result: Mapping[str, Any]) -> None:
    """As JSON, under a temporary name first: a call that is cut off leaves the previous file."""
    from gptq_hybrid.checkpoint._atomic import write_json_atomic

    write_json_atomic(path, result)


def merge(
    path: Path,
    settings: Mapping[str, Any],
    variants: Sequence[str],
    variant: str,
    found: Mapping[str, Any],
) -> Json:
    """Put one run into the file, runs in the order of ``variants``; runs with other settings in it go."""
    before = load(path)
    runs = before["runs"] if before and before["settings"] == settings else {}
    merged = {**runs, variant: found}
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
