"""Evaluations as JSON, and back."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from gptq_hybrid.checkpoint.json_files import read_json_object
from gptq_hybrid.common.atomic import write_json_atomic
from gptq_hybrid.common.typed_json import FormatError, read_object

from ._evaluation import SCHEMA, Evaluation

_AGAIN = "Run qwen36 eval again, or give a file that it wrote."


def as_json(evaluation: Evaluation) -> dict[str, Any]:
    """A JSON object: ``schema`` (1), then the fields of :class:`Evaluation`.

    Estimates are ``{"value", "low", "high"}``. KLD and log perplexity are in nats per token, perplexities a token,
    acceptance lengths in tokens a step, the other figures shares between 0 and 1.
    """
    return {"schema": SCHEMA, **dataclasses.asdict(evaluation)}


def from_json(content: Mapping[str, Any], *, source: str = "This JSON") -> Evaluation:
    """The evaluation that :func:`as_json` wrote; fields it does not know are skipped.

    Raises:
        FormatError: another schema, or a field that is missing or of the wrong kind.
    """
    schema = content.get("schema")
    if schema != SCHEMA or isinstance(schema, bool):
        newer = isinstance(schema, int) and schema > SCHEMA
        raise FormatError(
            f"{source} has schema {schema!r}; this version reads schema {SCHEMA}.",
            remedy="Update vllm-qwen36-plugin." if newer else "Give a file that qwen36 eval wrote.",
        )
    result: Evaluation = read_object(Evaluation, content, source, remedy=_AGAIN)
    return result


def write_evaluation(path: Path, evaluation: Evaluation) -> None:
    """Write JSON under its name only once it is whole."""
    write_json_atomic(path, as_json(evaluation))


def read_evaluation(path: Path) -> Evaluation:
    """Read what :func:`write_evaluation` wrote.

    Raises:
        CheckpointError: unreadable, or not a JSON object.
        FormatError: not an evaluation.
    """
    return from_json(read_json_object(path), source=str(path))
