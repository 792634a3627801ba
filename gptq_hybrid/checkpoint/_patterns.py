"""Match patterns from somebody else's config as vLLM does, with a time limit."""

from __future__ import annotations

from gptq_hybrid.common.errors import CheckpointError

# A pattern of the kinds in use takes microseconds; one made to backtrack takes years.
_TIMEOUT = 1.0
_too_slow: set[str] = set()


def matches(pattern: str, text: str, *, anywhere: bool = False) -> bool:
    """Whether ``pattern`` matches at the start of ``text`` (with ``anywhere``, within it).

    A pattern that is not a regular expression matches nothing. vLLM uses the `regex` library too.

    Raises:
        CheckpointError: matching takes longer than a second.
    """
    # Only configs with patterns need it.
    import regex

    if pattern not in _too_slow:
        try:
            find = regex.search if anywhere else regex.match
            return find(pattern, text, timeout=_TIMEOUT) is not None
        except regex.error:
            return False
        except TimeoutError:
            _too_slow.add(pattern)
    shown = pattern if len(pattern) < 80 else f"{pattern[:77]}..."
    raise CheckpointError(
        "config.json", f"the pattern {shown!r} in quantization_config takes forever to match"
    )
