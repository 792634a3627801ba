"""Read JSON files that somebody else wrote."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from gptq_hybrid.common.errors import CheckpointError
from gptq_hybrid.common.small_files import parse_json, read_small_file

from .files import Files, Range, file_label

# The index of the 27B is 0.2 MB, its config 5 KB. A million names would be about 100 MB.
MAX_JSON_BYTES = 32 << 20


def read_json_object(path: str | Path) -> dict[str, Any]:
    """Read the JSON object in ``path``.

    Raises:
        CheckpointError: absent, unreadable, no regular file, larger than ``MAX_JSON_BYTES``, or not a JSON object.
    """
    path = Path(path)
    return _object(str(path), read_small_file(path, most=MAX_JSON_BYTES))


def fetch_json_object(files: Files, name: str, *, most: int = MAX_JSON_BYTES) -> dict[str, Any]:
    """Read the JSON object in the file ``name`` of a checkpoint, wherever its files are.

    Raises:
        CheckpointError: absent, unreadable, larger than ``most`` bytes, or not a JSON object.
    """
    where = file_label(files, name)
    raw = files.read(Range(name, 0, most + 1))
    if len(raw) > most:
        raise CheckpointError(where, f"is larger than {most >> 20} MiB, and was not read")
    return _object(where, raw)


def _object(where: str, raw: bytes) -> dict[str, Any]:
    value = parse_json(raw, where)
    if not isinstance(value, dict):
        raise CheckpointError(where, "is not a JSON object")
    return value
