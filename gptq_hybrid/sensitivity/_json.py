"""Results as JSON, and back."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from gptq_hybrid.checkpoint import read_json_object
from gptq_hybrid.common.atomic import write_json_atomic
from gptq_hybrid.common.typed_json import FormatError, read_object

from ._result import SCHEMA, Sensitivity

_AGAIN = "Give a file that qwen36 sensitivity wrote, or run it again."


def write_sensitivity(path: Path, result: Sensitivity) -> None:
    """Write JSON (``schema`` 1, then the fields of :class:`Sensitivity`) under its name only once it is whole."""
    path.parent.mkdir(parents=True, exist_ok=True)
    write_json_atomic(path, {"schema": SCHEMA, **dataclasses.asdict(result)})


def read_sensitivity(path: Path) -> Sensitivity:
    """Read what :func:`write_sensitivity` wrote.

    Raises:
        CheckpointError: unreadable, or not a JSON object.
        FormatError: another schema, or a field that is missing or of the wrong kind.
    """
    content: Mapping[str, Any] = read_json_object(path)
    if content.get("schema") != SCHEMA or "together" not in content:
        raise FormatError(
            f"{path} is no sensitivity scan of schema {SCHEMA}; its schema is {content.get('schema')!r}.",
            remedy=_AGAIN,
        )
    result: Sensitivity = read_object(Sensitivity, content, str(path), remedy=_AGAIN)
    return result
