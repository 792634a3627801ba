"""Match patterns from somebody else's config as vLLM does, within limits of time."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from functools import lru_cache
from typing import Any

from gptq_hybrid.common.errors import BoundsError

# A pattern of the kinds in use takes microseconds; one made to backtrack takes years.
_TIMEOUT = 1.0
# All patterns of a config over all modules of a model. Those of AutoRound's extra_config, with an entry for each
# module of a 27B, take half a second.
_MOST_SECONDS = 5.0
# A recipe with an entry for each module of a 27B has 2,400.
MOST_ENTRIES, MOST_CHARACTERS = 20_000, 1 << 14
_too_slow: set[str] = set()
_left: ContextVar[list[float] | None] = ContextVar("seconds_left_to_match", default=None)


@contextmanager
def bounded_matching(seconds: float = _MOST_SECONDS) -> Iterator[None]:
    """Within the block all calls of :func:`matches` together may take so many seconds."""
    token = _left.set([seconds])
    try:
        yield
    finally:
        _left.reset(token)


def refuse_oversized(quantization_config: Mapping[str, Any] | None) -> None:
    """Refuse a config whose lists and patterns are too many, or too long, to be looked through for every module.

    Raises:
        BoundsError: it has more than ``MOST_ENTRIES`` entries, or one of more than ``MOST_CHARACTERS``.
    """
    count, waiting = 0, [quantization_config]
    while waiting:
        value: Any = waiting.pop()
        if isinstance(value, str):
            if len(value) > MOST_CHARACTERS:
                raise BoundsError(
                    "config.json",
                    f"has a pattern or name of {len(value)} characters in quantization_config; more than "
                    f"{MOST_CHARACTERS} are not looked at",
                )
            continue
        inner = [*value.keys(), *value.values()] if isinstance(value, Mapping) else value
        if isinstance(inner, list):
            count += len(inner)
            if count > MOST_ENTRIES:
                raise BoundsError(
                    "config.json",
                    f"lists more than {MOST_ENTRIES} names, patterns and values in quantization_config, which are "
                    "not looked through",
                )
            waiting += inner


@lru_cache(maxsize=MOST_ENTRIES)
def _compiled(pattern: str) -> Any:
    """The compiled pattern, or why it is none."""
    # Only configs with patterns need it. vLLM uses the `regex` library too.
    import regex

    try:
        return regex.compile(pattern)
    except regex.error as error:
        return str(error)


def complaint(pattern: str) -> str | None:
    """Say why ``pattern`` is no regular expression; None for one that is."""
    compiled = _compiled(pattern)
    return compiled if isinstance(compiled, str) else None


def matches(pattern: str, text: str, *, anywhere: bool = False) -> bool:
    """Whether ``pattern`` matches at the start of ``text`` (with ``anywhere``, within it).

    A pattern that is not a regular expression matches nothing.

    Raises:
        BoundsError: matching takes longer than a second, or all patterns too long (:func:`bounded_matching`).
    """
    left, begun = _left.get(), time.monotonic()
    if left is not None and left[0] <= 0:
        raise BoundsError(
            "config.json",
            "the patterns in quantization_config take too long to match; they were not all tried",
        )
    if pattern not in _too_slow and len(pattern) <= MOST_CHARACTERS:
        try:
            compiled = _compiled(pattern)
            if isinstance(compiled, str):
                return False
            find = compiled.search if anywhere else compiled.match
            return find(text, timeout=_TIMEOUT) is not None
        except TimeoutError:
            _too_slow.add(pattern)
        finally:
            if left is not None:
                left[0] -= time.monotonic() - begun
    shown = pattern if len(pattern) < 80 else f"{pattern[:77]}..."
    raise BoundsError("config.json", f"the pattern {shown!r} in quantization_config takes forever to match")
