"""The calibration sources that ship, and finding the one that recognises a ``--calibration`` value."""

from __future__ import annotations

import re
from itertools import islice
from pathlib import Path
from typing import Any

from gptq_hybrid.checkpoint import HybridError
from gptq_hybrid.checkpoint.calibration import CalibrationSource
from gptq_hybrid.checkpoint.plugins import calibration_sources

from ._files import JSONL_ENDINGS, checked, jsonl_files, read_jsonl
from ._rows import Row, drawn, row_key

# What the reference artifact was calibrated on.
DEFAULT_DATASET = "HuggingFaceH4/ultrachat_200k:train_sft"
_HUB = re.compile(r"(?P<id>[\w.-]+/[\w.-]+)(?:@(?P<revision>[\w./-]+))?(?::(?P<split>[\w.-]+))?")
_SHUFFLE_BUFFER = 10_000


def find_source(spec: str) -> CalibrationSource:
    """The source that recognises ``spec``; a plugin's comes before those that ship.

    Raises:
        HybridError: none does.
    """
    known = calibration_sources()
    for source in reversed(known):
        if source.matches(spec):
            return source
    raise HybridError(
        f"calibration {spec!r} is neither a file nor a data set id",
        remedy="Give a .jsonl file, or a hub data set as OWNER/NAME[@REVISION][:SPLIT]. "
        "Sources: " + ", ".join(source.name for source in known) + ".",
    )


def load_rows(spec: str, count: int, seed: int) -> list[Row]:
    """At most ``count`` rows from the source that recognises ``spec``.

    Raises:
        HybridError: no source recognises it, it cannot be read, or it has no rows.
    """
    rows = list(islice(find_source(spec).load(spec, count, seed), count))
    if not rows:
        raise HybridError(f"calibration {spec!r} has no rows", remedy="Give a file or data set with text.")
    return rows


def _load_jsonl(spec: str, count: int, seed: int) -> list[Row]:
    """Rows drawn by ``seed``; every line is checked first."""
    rows = [row for file in jsonl_files(Path(spec)) for row in read_jsonl(file)]
    return sorted(rows, key=lambda row: drawn(seed, row_key(row)))[:count]


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
    return list(checked(rows, f"{spec}: row", 0))


def _load_demo(spec: str, count: int, seed: int) -> list[dict[str, Any]]:
    from gptq_hybrid.demo.text import demo_conversations

    return demo_conversations(count, seed)


BUILTIN_SOURCES = (
    CalibrationSource(
        "hub", lambda spec: _HUB.fullmatch(spec) is not None and not Path(spec).exists(), _load_hub
    ),
    CalibrationSource(
        "jsonl", lambda spec: spec.endswith(JSONL_ENDINGS) or Path(spec).is_file(), _load_jsonl
    ),
    CalibrationSource("demo", lambda spec: spec == "demo", _load_demo),
)
