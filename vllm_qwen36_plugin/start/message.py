"""A list of problems, as the person at the terminal reads it."""

from __future__ import annotations

from collections.abc import Iterable

_MOST = 5


def bullets(problems: Iterable[tuple[str, str]]) -> list[str]:
    """At most 11 lines about ``(what is wrong, what to do)`` pairs; equal advice is given once, last."""
    problems = list(problems)
    lines = []
    shown = problems[:_MOST]
    for number, (what, remedy) in enumerate(shown):
        lines.append(f"  * {what}")
        following = [later for _, later in shown[number + 1 :]]
        if remedy and remedy not in following:
            lines.append(f"    -> {remedy}")
    if len(problems) > _MOST:
        lines.append(f"  * and {len(problems) - _MOST} more")
    return lines
