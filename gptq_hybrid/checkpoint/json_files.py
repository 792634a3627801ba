"""Read JSON files that somebody else wrote."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from gptq_hybrid.common.errors import CheckpointError

from .files import Files, Range, file_label

# The index of the 27B is 0.2 MB, its config 5 KB. A million names would be about 100 MB.
MAX_JSON_BYTES = 32 << 20


def read_json_object(path: str | Path) -> dict[str, Any]:
    """Read the JSON object in ``path``.

    Raises:
        CheckpointError: absent, unreadable, or not a JSON object.
    """
    path = Path(path)
    try:
        raw = path.read_bytes()
    except FileNotFoundError as error:
        raise CheckpointError(path, "does not exist") from error
    except OSError as error:
        raise CheckpointError(path, f"cannot be read: {error.strerror or error}") from error
    return _parse(str(path), raw)


def fetch_json_object(files: Files, name: str) -> dict[str, Any]:
    """Read the JSON object in the file ``name`` of a checkpoint, wherever its files are.

    Raises:
        CheckpointError: absent, unreadable, larger than ``MAX_JSON_BYTES``, or not a JSON object.
    """
    where = file_label(files, name)
    raw = files.read(Range(name, 0, MAX_JSON_BYTES + 1))
    if len(raw) > MAX_JSON_BYTES:
        raise CheckpointError(where, f"is larger than {MAX_JSON_BYTES >> 20} MiB, and was not read")
    return _parse(where, raw)


def _parse(where: str, raw: bytes) -> dict[str, Any]:
    try:
        # Strictly UTF-8, as transformers and vLLM read it: from bytes, json guesses among three encodings.
        value = json.loads(raw.decode("utf-8"))
    except (ValueError, RecursionError) as error:
        raise CheckpointError(where, f"is not valid JSON: {error}") from error
    if not isinstance(value, dict):
        raise CheckpointError(where, "is not a JSON object")
    return value
