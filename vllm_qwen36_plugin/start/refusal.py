"""The refusal, as the person at the terminal reads it."""

from __future__ import annotations

from collections.abc import Iterable

from vllm_qwen36_plugin.start.message import bullets


def refusal(where: str, problems: Iterable[tuple[str, str]]) -> str:
    """A message of at most 20 lines about ``(what is wrong, what to do)`` pairs found in ``where``."""
    lines = [
        f"MTP speculative decoding was asked for, but the MTP head of {where} is not usable:",
        "",
        *bullets(problems),
        "",
        "Stock vLLM mostly starts anyway and accepts no draft, which costs speed and says nothing.",
        "To serve without MTP, leave out --speculative-config.",
        'To start in spite of this, add --additional-config \'{"qwen36": {"mtp_check": "off"}}\'.',
    ]
    return "\n".join(lines)
