"""The calibration sources that ship: a JSONL file, a hub data set, the demo's texts."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Iterator
from itertools import islice
from pathlib import Path
from typing import Any

from gptq_hybrid.checkpoint import HybridError
from gptq_hybrid.checkpoint.calibration import CalibrationSource
from gptq_hybrid.checkpoint.plugins import calibration_sources

# What the reference artifact was calibrated on.
DEFAULT_DATASET = "HuggingFaceH4/ultrachat_200k:train_sft"
_HUB = re.compile(r"(?P<id>[\w.-]+/[\w.-]+)(?:@(?P<revision>[\w./-]+))?(?::(?P<split>[\w.-]+))?")
_SHUFFLE_BUFFER = 10_000

Row = dict[str, Any]


def load_rows(spec: str, count: int, seed: int) -> list[Row]:
    """At most ``count`` rows from the source that recognises ``spec``; a plugin's source comes first.

    Raises:
        HybridError: no source recognises it, it cannot be read, or it has no rows.
    """
    known = calibration_sources()
    for source in reversed(known):
        if source.matches(spec):
            rows = source.load(spec, count, seed)
            if not rows:
                raise HybridError(
                    f"calibration {spec!r} has no rows", remedy="Give a file or data set with text."
                )
            return rows
    raise HybridError(
        f"calibration {spec!r} is neither a file nor a data set id",
        remedy="Give a .jsonl file, or a hub data set as OWNER/NAME[@REVISION][:SPLIT]. "
        "Sources: " + ", ".join(source.name for source in known) + ".",
    )


def check_row(row: Any) -> Row:
    """``row`` reduced to its ``messages`` or ``text``.

    Raises:
        ValueError: it has neither, or one of the wrong form.
    """
    if not isinstance(row, dict):
        raise ValueError("is not a JSON object")
    if "messages" in row:
        messages = row["messages"]
        if not isinstance(messages, list) or not messages:
            raise ValueError("`messages` is not a non-empty list")
        for message in messages:
            if not isinstance(message, dict) or not isinstance(message.get("role"), str):
                raise ValueError("a message lacks its `role`")
            if not isinstance(message.get("content"), str) and not message.get("tool_calls"):
                raise ValueError("a message has no text `content`")
        return {key: row[key] for key in ("messages", "tools") if row.get(key)}
    if isinstance(row.get("text"), str) and row["text"].strip():
        return {"text": row["text"]}
    raise ValueError("has neither `messages` nor a non-empty `text`")


def _checked(rows: Iterable[Any], what: str, first: int) -> Iterator[Row]:
    for number, row in enumerate(rows, first):
        try:
            yield check_row(row)
        except ValueError as error:
            raise HybridError(f"{what} {number} {error}") from error


def _parse_lines(path: Path) -> Iterator[Any]:
    with path.open(encoding="utf-8") as handle:
        for number, line in enumerate(handle, 1):
            if not line.strip():
                raise HybridError(f"{path}: line {number} is empty", remedy="Remove it.")
            try:
                yield json.loads(line)
            except ValueError as error:
                raise HybridError(f"{path}: line {number} is not valid JSON: {error}") from error


def _load_jsonl(spec: str, count: int, seed: int) -> list[Row]:
    """The first ``count`` rows, in file order; every line of the file is checked."""
    path = Path(spec)
    if not path.is_file():
        raise HybridError(f"calibration file {path} does not exist")
    try:
        return list(_checked(_parse_lines(path), f"{path}: line", 1))[:count]
    except (OSError, UnicodeDecodeError) as error:
        raise HybridError(f"calibration file {path} cannot be read: {error}") from error


def _load_hub(spec: str, count: int, seed: int) -> list[Row]:
    """A seeded sample, streamed: only what is used is downloaded."""
    match = _HUB.fullmatch(spec)
    assert match is not None
    try:
        from datasets import load_dataset

        stream = load_dataset(
            match["id"], split=match["split"] or "train", revision=match["revision"], streaming=True
        )
        rows = list(islice(stream.shuffle(seed=seed, buffer_size=_SHUFFLE_BUFFER), count))
    except Exception as error:
        raise HybridError(
            f"data set {spec!r} cannot be read: {error}",
            remedy="Check the name and the network, or give a .jsonl file.",
        ) from error
    return list(_checked(rows, f"{spec}: row", 0))


def _load_demo(spec: str, count: int, seed: int) -> list[Row]:
    from gptq_hybrid.demo.text import demo_conversations

    return demo_conversations(count, seed)


BUILTIN_SOURCES = (
    CalibrationSource(
        "hub", lambda spec: _HUB.fullmatch(spec) is not None and not Path(spec).exists(), _load_hub
    ),
    CalibrationSource(
        "jsonl", lambda spec: spec.endswith((".jsonl", ".json")) or Path(spec).is_file(), _load_jsonl
    ),
    CalibrationSource("demo", lambda spec: spec == "demo", _load_demo),
)
