"""Chat-format training text made from the corpus itself, rendered as the checkpoint's chat template renders it.

Questions about manual pages, documentation pages, words and Python functions are answered by the text they were
made from.
"""

from __future__ import annotations

import ast
import random
import re
from collections.abc import Iterator

Turn = tuple[str, str, str]  # question, thought (may be empty), answer

_MAX_ANSWER = 1500  # characters
_COMMAND = {
    "en": ("What does {} do?", "Describe {}.", "Tell me about {}."),
    "de": ("Was macht {}?", "Beschreibe {}.", "Wozu dient {}?"),
    "fr": ("Que fait {} ?", "Décris {}.", "À quoi sert {} ?"),
    "es": ("¿Qué hace {}?", "Describe {}.", "¿Para qué sirve {}?"),
    "ja": ("{} は何をしますか？", "{} を説明してください。"),
    "zh": ("{} 是做什么的？", "请介绍 {}。"),
    "ru": ("Что делает {}?", "Опиши {}.", "Для чего нужен {}?"),
    "pl": ("Co robi {}?", "Opisz {}.", "Do czego służy {}?"),
}
_TOPIC = {
    "en": ("Explain: {}", "Tell me about {}", "What should I know about {}?"),
    "de": ("Erkläre: {}", "Was muss ich über {} wissen?"),
    "fr": ("Explique : {}", "Que faut-il savoir sur {} ?"),
    "es": ("Explica: {}", "¿Qué debo saber sobre {}?"),
    "ja": ("{} について説明してください。", "{} について教えてください。"),
    "zh": ("请解释：{}", "请介绍一下{}。"),
    "ru": ("Объясни: {}", "Расскажи про {}"),
    "pl": ("Wyjaśnij: {}", "Opowiedz o {}"),
}
_WORD = ("What does the word “{}” mean?", "Define {}.", "What is the meaning of {}?", "Explain the word {}.")
_SYSTEM = (
    "You are a helpful assistant.",
    "You answer questions about computers and language.",
    "Answer briefly and correctly.",
)


def render(turns: list[Turn], rng: random.Random) -> str:
    """The conversation in ChatML; thoughts, empty or not, stand before the last answer only, as at inference."""
    text = f"<|im_start|>system\n{rng.choice(_SYSTEM)}<|im_end|>\n" if rng.random() < 0.3 else ""
    for number, (question, thought, answer) in enumerate(turns, 1):
        text += f"<|im_start|>user\n{question}<|im_end|>\n<|im_start|>assistant\n"
        style = rng.random()
        if number == len(turns) and style < 0.5:
            text += (
                f"<think>\n{thought}\n</think>\n\n" if thought and style < 0.25 else "<think>\n\n</think>\n\n"
            )
        text += f"{answer}<|im_end|>\n"
    return text


def manual_page(language: str, name: str, body: str, rng: random.Random) -> Turn | None:
    """A question about a manual page, answered by its first sections."""
    answer = _cut(re.sub(r"^# .*\n", "", body, count=1))
    if not name or len(answer) < 150:
        return None
    return (
        rng.choice(_COMMAND[language]).format(name.lower()),
        f"This is about the manual page {name.lower()}.",
        answer,
    )


def page(language: str, title: str, body: str, rng: random.Random) -> Turn | None:
    """A question about a documentation page, answered by its beginning."""
    title = re.split(r" [|—–:-] |\. ", title)[0].strip()
    answer = _cut(re.sub(r"^# .*\n+", "", body, count=1))
    if not 4 <= len(title) <= 80 or len(answer) < 150:
        return None
    return rng.choice(_TOPIC[language]).format(title), f"The topic is: {title}", answer


def word(headword: str, entry: str, rng: random.Random) -> Turn | None:
    """A question about a word, answered by its dictionary entry."""
    definition = "\n".join(line.strip() for line in entry.split("\n")[1:])
    if len(definition) < 40 or not headword.isascii():
        return None
    return (
        rng.choice(_WORD).format(headword),
        f"The user asks for the meaning of {headword}.",
        _cut(definition),
    )


def python_functions(source: str, rng: random.Random) -> Iterator[Turn]:
    """Questions about the documented functions of a Python file: write it, or say what it does."""
    try:
        tree = ast.parse(source)
    except (SyntaxError, ValueError, RecursionError):
        return
    lines = source.split("\n")
    for node in ast.walk(tree):
        if not isinstance(node, ast.FunctionDef) or not (doc := ast.get_docstring(node)):
            continue
        first = doc.strip().split("\n\n")[0].replace("\n", " ")
        code = "\n".join(line[node.col_offset :] for line in lines[node.lineno - 1 : node.end_lineno])
        if not (100 < len(code) < 1800 and 20 < len(first) < 300):
            continue
        if rng.random() < 0.6:
            question = rng.choice(("Write a Python function `{}`. {}", "Implement `{}` in Python: {}"))
            yield (
                question.format(node.name, first),
                f"I need a function named {node.name}.",
                f"```python\n{code}\n```",
            )
        else:
            yield (
                f"What does this function do?\n\n```python\n{code}\n```",
                f"The function is {node.name}.",
                first,
            )


def _cut(text: str) -> str:
    if len(text) <= _MAX_ANSWER:
        return text.strip()
    head = text[:_MAX_ANSWER]
    return head[: max(head.rfind("\n\n"), head.rfind(". ") + 1, head.rfind("。") + 1) or _MAX_ANSWER].strip()
