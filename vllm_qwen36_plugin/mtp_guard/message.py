"""The refusal, as the person at the terminal reads it."""

from __future__ import annotations

from collections.abc import Iterable

_MOST = 5


def refusal(where: str, problems: Iterable[tuple[str, str]]) -> str:
    """A message of at most 20 lines about ``(what is wrong, what to do)`` pairs found in ``where``."""
    problems = list(problems)
    lines = [f"MTP speculative decoding was asked for, but the MTP head of {where} is not usable:", ""]
    shown = problems[:_MOST]
    for number, (what, remedy) in enumerate(shown):
        lines.append(f"  * {what}")
        following = [later for _, later in shown[number + 1 :]]
        if remedy and remedy not in following:
            lines.append(f"    -> {remedy}")
    if len(problems) > _MOST:
        lines.append(f"  * and {len(problems) - _MOST} more")
    lines += [
        "",
        "Stock vLLM mostly starts anyway and accepts no draft, which costs speed and says nothing.",
        "To serve without MTP, leave out --speculative-config.",
        'To start in spite of this, add --additional-config \'{"qwen36": {"mtp_check": "off"}}\'.',
    ]
    return "\n".join(lines)
