"""Evaluations as JSON, and back."""

from __future__ import annotations

import dataclasses
import types
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

from gptq_hybrid.checkpoint._atomic import write_json_atomic
from gptq_hybrid.checkpoint._json import read_json_object
from gptq_hybrid.checkpoint.errors import HybridError

from ._evaluation import SCHEMA, Evaluation


class FormatError(HybridError):
    """JSON that is no evaluation of a known schema."""


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
    found: Evaluation = _object(Evaluation, content, source, "")
    return found


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


@cache
def _hints(cls: type) -> dict[str, Any]:
    return get_type_hints(cls)


def _object(cls: Any, value: Any, source: str, where: str) -> Any:
    if not isinstance(value, Mapping):
        raise _wrong(source, where, "an object", value)
    hints, known = _hints(cls), {}
    for field in dataclasses.fields(cls):
        inner = f"{where}.{field.name}" if where else field.name
        if field.name in value:
            known[field.name] = _value(hints[field.name], value[field.name], source, inner)
        elif field.default is dataclasses.MISSING and field.default_factory is dataclasses.MISSING:
            raise FormatError(f"{source} lacks {inner}.", remedy="Run qwen36 eval again.")
    return cls(**known)


def _value(kind: Any, value: Any, source: str, where: str) -> Any:
    """``value`` as the annotation ``kind`` wants it."""
    origin, parts = get_origin(kind), get_args(kind)
    if dataclasses.is_dataclass(kind):
        return _object(kind, value, source, where)
    if origin in (Union, types.UnionType):
        return None if value is None else _value(parts[0], value, source, where)
    if origin is tuple:
        if not isinstance(value, list | tuple):
            raise _wrong(source, where, "a list", value)
        return tuple(_value(parts[0], item, source, f"{where}[{i}]") for i, item in enumerate(value))
    if origin is Literal:
        if value not in parts:
            raise _wrong(source, where, " or ".join(map(repr, parts)), value)
        return value
    if origin is dict:
        if not isinstance(value, Mapping):
            raise _wrong(source, where, "an object", value)
        return dict(value)
    accepted = (int, float) if kind is float else kind
    if not isinstance(value, accepted) or isinstance(value, bool):
        raise _wrong(source, where, {float: "a number", int: "an integer"}.get(kind, "a string"), value)
    return float(value) if kind is float else value


def _wrong(source: str, where: str, wanted: str, value: Any) -> FormatError:
    shown = repr(value)
    return FormatError(
        f"{source}: {where} should be {wanted}, and is {shown if len(shown) < 60 else shown[:57] + '…'}.",
        remedy="Run qwen36 eval again, or give a file that it wrote.",
    )
