"""Real English text that every CPython carries: the language reference behind ``help()``."""

from __future__ import annotations

import random
from functools import cache
from typing import Any

from gptq_hybrid.hooks import CalibrationSource

_QUESTIONS = (
    "What does the Python reference say about {topic}?",
    "Explain {topic} in Python.",
    "I am reading Python code and stumbled over {topic}. How does it work?",
    "Give me the documentation of {topic}, please.",
    "Which rules apply to {topic}?",
    "Tell me the details of {topic} that people tend to forget.",
)
_SHORTEST, _LONGEST = 120, 1500


@cache
def corpus() -> dict[str, str]:
    """Return text by topic, sorted by name: about 0.45 MB, as the running interpreter words it."""
    from pydoc_data.topics import topics

    return {name: topics[name].strip() for name in sorted(topics)}


def demo_conversations(n: int, seed: int = 0) -> list[dict[str, Any]]:
    """Return ``n`` calibration rows ``{"messages": [user, assistant]}`` of real text, answers up to 1,500
    characters.

    The same ``n`` and ``seed`` give the same rows on the same CPython. A larger ``n`` only appends rows.
    """
    rng = random.Random(seed)
    names = list(corpus())
    order: list[str] = []
    rows: list[dict[str, Any]] = []
    for _ in range(n):
        if not order:
            order = rng.sample(names, len(names))
        topic = order.pop()
        question = rng.choice(_QUESTIONS).format(topic=f'"{topic}"')
        answer = _passage(corpus()[topic], rng)
        rows.append(
            {"messages": [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]}
        )
    return rows


def _passage(text: str, rng: random.Random) -> str:
    """Return a run of whole paragraphs of a random length; the last one is cut at a word if need be."""
    paragraphs = text.split("\n\n")
    limit = rng.randint(_SHORTEST, _LONGEST)
    passage = "\n\n".join(paragraphs[rng.randrange(len(paragraphs)) :]).strip()
    if len(passage) < _SHORTEST:
        passage = text
    if len(passage) <= limit:
        return passage
    return passage[:limit].rsplit(maxsplit=1)[0]


# What ``--calibration demo`` means; the plugin module contributes it.
DEMO_SOURCE = CalibrationSource(
    "demo", lambda spec: spec == "demo", lambda spec, count, seed: demo_conversations(count, seed)
)
