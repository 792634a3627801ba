"""Read parsed JSON into dataclasses, checking each field against its annotation."""

from __future__ import annotations

import dataclasses
import types
from collections.abc import Mapping
from functools import cache
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

from .errors import HybridError


class FormatError(HybridError):
    """JSON of another schema, or with a field that is missing or has the wrong type."""


def read_object(cls: type[Any], content: Any, source: str, *, remedy: str) -> Any:
    """Build the dataclass ``cls`` from parsed JSON; keys that name no field are skipped.

    Fields may be annotated with dataclasses, ``X | None``, ``tuple[X, ...]``, ``Literal``, ``dict``, int, float
    and str.

    Args:
        cls: the dataclass.
        content: what the JSON parser returned.
        source: the file's name, for messages.
        remedy: what to do about content that does not fit, for messages.

    Raises:
        FormatError: a field is missing or has the wrong type.
    """
    return _Reader(source, remedy).object(cls, content, "")


@cache
def _hints(cls: type) -> dict[str, Any]:
    return get_type_hints(cls)


class _Reader:
    def __init__(self, source: str, remedy: str) -> None:
        self._source, self._remedy = source, remedy

    def object(self, cls: Any, content: Any, where: str) -> Any:
        if not isinstance(content, Mapping):
            raise self._wrong(where, "an object", content)
        hints, values = _hints(cls), {}
        for field in dataclasses.fields(cls):
            inner = f"{where}.{field.name}" if where else field.name
            if field.name in content:
                values[field.name] = self._value(hints[field.name], content[field.name], inner)
            elif field.default is dataclasses.MISSING and field.default_factory is dataclasses.MISSING:
                raise FormatError(f"{self._source} lacks {inner}.", remedy=self._remedy)
        return cls(**values)

    def _value(self, kind: Any, value: Any, where: str) -> Any:
        origin, parts = get_origin(kind), get_args(kind)
        if dataclasses.is_dataclass(kind):
            return self.object(kind, value, where)
        if origin in (Union, types.UnionType):
            return None if value is None else self._value(parts[0], value, where)
        if origin is tuple:
            if not isinstance(value, list | tuple):
                raise self._wrong(where, "a list", value)
            return tuple(self._value(parts[0], item, f"{where}[{i}]") for i, item in enumerate(value))
        if origin is Literal:
            if value not in parts:
                raise self._wrong(where, " or ".join(map(repr, parts)), value)
            return value
        if origin is dict:
            if not isinstance(value, Mapping):
                raise self._wrong(where, "an object", value)
            return dict(value)
        accepted = (int, float) if kind is float else kind
        if not isinstance(value, accepted) or isinstance(value, bool):
            raise self._wrong(where, {float: "a number", int: "an integer"}.get(kind, "a string"), value)
        return float(value) if kind is float else value

    def _wrong(self, where: str, expected: str, value: Any) -> FormatError:
        shown = repr(value)
        return FormatError(
            f"{self._source}: {where} should be {expected}, and is "
            f"{shown if len(shown) < 60 else shown[:57] + '…'}.",
            remedy=self._remedy,
        )
