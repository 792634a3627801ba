"""Rows of a JSONL file as prompts to send to a server: conversations up to an answer, or text to continue."""

from __future__ import annotations

import gzip
import json
import lzma
from dataclasses import dataclass, replace
from functools import cached_property
from hashlib import sha256
from pathlib import Path
from typing import Any, TextIO

from gptq_hybrid.common.errors import HybridError

from .rows import Row, parse_row, row_key, row_text, shuffle_key

_FORM = 'A line is {"messages": [...]}, {"prompt": "..."} or {"text": "..."}.'
# 36 prompts in six domains, written for this project: what is asked where the user names no file.
SHIPPED_PROMPTS = Path(__file__).with_name("prompts.jsonl")
# Between a prompt and the text that is put ahead of it.
BETWEEN = "\n\n"


@dataclass(frozen=True)
class Prompt:
    """The prompt of one request.

    Attributes:
        messages: a conversation that ends before an answer; empty if ``text`` is to be continued.
        text: to be continued.
        tools: definitions, as the row has them.
        content: all text of the row, answers included. Other prompts' long contexts are made of it.
        domain: the row's own field of that name; ``""`` without one.
    """

    messages: tuple[dict[str, Any], ...] = ()
    text: str = ""
    tools: tuple[Any, ...] = ()
    content: str = ""
    domain: str = ""

    def body(self) -> dict[str, Any]:
        """Make the part of a request's body that holds the prompt."""
        if not self.messages:
            return {"prompt": self.text}
        body: dict[str, Any] = {"messages": list(self.messages)}
        return {**body, "tools": list(self.tools)} if self.tools else body

    def behind(self, filling: str) -> Prompt:
        """Put ``filling`` ahead of the text, or of the user's first message."""
        if not filling:
            return self
        if not self.messages:
            return replace(self, text=filling + BETWEEN + self.text)
        roles = [message["role"] for message in self.messages]
        at = roles.index("user") if "user" in roles else 0
        changed = {**self.messages[at], "content": filling + BETWEEN + self.messages[at]["content"]}
        return replace(self, messages=(*self.messages[:at], changed, *self.messages[at + 1 :]))


@dataclass(frozen=True)
class Prompts:
    """All prompts of a file, in an order that depends only on their texts."""

    path: Path
    prompts: tuple[Prompt, ...]

    @cached_property
    def sha256(self) -> str:
        """Digest of all prompts, in hexadecimal; the order of the file and its compression do not matter."""
        bodies = [json.dumps(prompt.body(), sort_keys=True, ensure_ascii=False) for prompt in self.prompts]
        return sha256("\n".join(bodies).encode("utf-8", "surrogatepass")).hexdigest()


def read_prompts(path: Path, *, chat: bool) -> Prompts:
    """Read the prompts of a JSONL file (plain, ``.gz`` or ``.xz``).

    Args:
        path: its rows have ``messages`` or ``text``, as for calibration and evaluation, or a ``prompt``: the
            words of a user, or a list of messages. Answers at the end of ``messages`` are left out.
        chat: whether the checkpoint has a chat template; without one a ``prompt`` is continued as text.

    Raises:
        HybridError: the file is missing, empty or unreadable, or a line is no prompt; the error names the line.
    """
    if not path.is_file():
        raise HybridError(f"{path} does not exist or is no file", remedy=f"Give a JSONL file. {_FORM}")
    rows: list[tuple[str, Prompt]] = []
    try:
        with _open(path) as handle:
            for number, line in enumerate(handle, 1):
                try:
                    rows.append(_read(line, chat=chat))
                except ValueError as error:
                    raise HybridError(f"{path}: line {number} {error}", remedy=_FORM) from error
    except (OSError, EOFError, UnicodeDecodeError, lzma.LZMAError) as error:
        raise HybridError(f"{path} cannot be read: {error}", remedy="Give a JSONL file in UTF-8.") from error
    if not rows:
        raise HybridError(f"{path} is empty", remedy=f"Give prompts, one a line. {_FORM}")
    # Files are often sorted by topic, and batch 1 would only ever see the first prompts.
    return Prompts(path, tuple(prompt for _, prompt in sorted(rows, key=lambda row: shuffle_key(0, row[0]))))


def _open(path: Path) -> TextIO:
    if path.suffix == ".gz":
        return gzip.open(path, "rt", encoding="utf-8")
    if path.suffix == ".xz":
        return lzma.open(path, "rt", encoding="utf-8")
    return path.open(encoding="utf-8")


def _read(line: str, *, chat: bool) -> tuple[str, Prompt]:
    """Read one line: the row's key, which its place in the order depends on, and its prompt.

    Raises:
        ValueError: the line holds no prompt.
    """
    if not line.strip():
        raise ValueError("is empty")
    try:
        parsed = json.loads(line)
    except ValueError as error:
        raise ValueError(f"is not valid JSON: {error}") from error
    if isinstance(parsed, dict) and "messages" not in parsed and "text" not in parsed and "prompt" in parsed:
        prompt = parsed["prompt"]
        if isinstance(prompt, str) and not prompt.strip():
            raise ValueError("has an empty `prompt`")
        if isinstance(prompt, list):
            parsed = {**parsed, "messages": prompt}
        elif chat:
            parsed = {**parsed, "messages": [{"role": "user", "content": prompt}]}
        else:
            parsed = {**parsed, "text": prompt}
    row = parse_row(parsed)
    domain = parsed.get("domain")
    return row_key(row), replace(
        _prompt(row, chat=chat), domain=domain.strip() if isinstance(domain, str) else ""
    )


def _prompt(row: Row, *, chat: bool) -> Prompt:
    if "text" in row:
        return Prompt(text=row["text"], content=row["text"])
    if not chat:
        raise ValueError("has messages, and the checkpoint has no chat template")
    messages = list(row["messages"])
    while messages and messages[-1]["role"] == "assistant":
        messages.pop()
    if not any(message["role"] != "system" for message in messages):
        raise ValueError("has nothing to answer: only an assistant speaks")
    return Prompt(tuple(map(_for_api, messages)), "", tuple(row.get("tools", ())), row_text(row))


def _for_api(message: dict[str, Any]) -> dict[str, Any]:
    """Write a message as OpenAI's API has it: a call's arguments are JSON text, and it has an id."""
    if "tool_calls" not in message:
        return message
    calls = [
        {
            "id": f"call_{number}",
            "type": "function",
            "function": {
                "name": call["function"]["name"],
                "arguments": json.dumps(call["function"]["arguments"], ensure_ascii=False),
            },
        }
        for number, call in enumerate(message["tool_calls"])
    ]
    return {**message, "tool_calls": calls}
