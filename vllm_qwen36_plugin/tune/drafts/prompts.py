"""The prompts of a workload: read from JSONL, and placed behind other text for a long context."""

from __future__ import annotations

import gzip
import json
import lzma
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property
from hashlib import sha256
from pathlib import Path
from typing import Any, Protocol, TextIO

from gptq_hybrid.calibration.rows import Row, parse_row, row_key, row_text, shuffle_key
from gptq_hybrid.common.errors import HybridError

_FORM = 'A line is {"messages": [...]}, {"prompt": "..."} or {"text": "..."}.'
_BETWEEN = "\n\n"


@dataclass(frozen=True)
class Prompt:
    """The prompt of one request.

    Attributes:
        messages: a conversation that ends before an answer; empty if ``text`` is to be continued.
        text: to be continued.
        tools: definitions, as the row has them.
        content: all text of the row, answers included. Other prompts' long contexts are made of it.
    """

    messages: tuple[dict[str, Any], ...] = ()
    text: str = ""
    tools: tuple[Any, ...] = ()
    content: str = ""

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
            return Prompt(text=filling + _BETWEEN + self.text, content=self.content)
        roles = [message["role"] for message in self.messages]
        at = roles.index("user") if "user" in roles else 0
        changed = {**self.messages[at], "content": filling + _BETWEEN + self.messages[at]["content"]}
        return Prompt((*self.messages[:at], changed, *self.messages[at + 1 :]), "", self.tools, self.content)


class Tokens(Protocol):
    """A server's tokenizer."""

    def count(self, prompt: Prompt) -> int:
        """Count the tokens of the prompt as the model gets it, through the chat template if it has messages."""

    def encode(self, text: str) -> list[int]:
        """Tokenize a text, without special tokens around it."""

    def decode(self, ids: Sequence[int]) -> str:
        """Turn token ids into text."""


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

    def require_bytes(self, tokens: int) -> None:
        """Refuse a long context that all texts together cannot fill, without asking a tokenizer.

        Raises:
            HybridError: they have fewer bytes than ``tokens``.
        """
        total = sum(len(prompt.content.encode("utf-8", "surrogatepass")) for prompt in self.prompts)
        if total < tokens:
            raise too_little_text(self.path, f"{total:,} bytes", tokens)


def too_little_text(path: Path, size: str, tokens: int) -> HybridError:
    """Make the error that the long context cannot be filled."""
    return HybridError(
        f"{path} has no prompt long enough, and too little text to fill a long context: all its prompts together "
        f"hold {size}, and the long context is {tokens:,} tokens",
        remedy="Give more prompts, fewer tokens with --long-tokens, or --context short.",
    )


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
    return row_key(row), _prompt(row, chat=chat)


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


@dataclass
class Contexts:
    """Short and long prompts, counted by a server's tokenizer."""

    prompts: Prompts
    tokens: Tokens
    most: int
    """Most tokens of a prompt: the server's ``max_model_len`` minus those of the answer."""
    left_out: int = field(default=0, init=False)
    """Number of prompts that have more."""
    _usable: list[tuple[Prompt, int]] | None = field(default=None, init=False)
    _texts: dict[int, list[int]] = field(default_factory=dict, init=False)
    _long: dict[tuple[int, int], Prompt] = field(default_factory=dict, init=False)

    def short(self, at: int) -> Prompt:
        """Return prompt ``at`` of those that fit, starting over after the last.

        Raises:
            HybridError: no prompt fits.
        """
        usable = self._fitting()
        return usable[at % len(usable)][0]

    def long(self, at: int, length: int) -> Prompt:
        """Return the same prompt behind other text, about ``length`` tokens in all.

        The text comes from the prompts that follow it, starting over after the last, each once, answers
        included, with a blank line between. Its last tokens are cut off. No two prompts begin alike.

        Raises:
            HybridError: no prompt fits, or all texts together are too short.
        """
        usable = self._fitting()
        at %= len(usable)
        if (at, length) not in self._long:
            prompt, tokens = usable[at]
            self._long[at, length] = prompt.behind(self._filling(at, length - tokens, length))
        return self._long[at, length]

    def _fitting(self) -> list[tuple[Prompt, int]]:
        if self._usable is None:
            counted = [(prompt, self.tokens.count(prompt)) for prompt in self.prompts.prompts]
            self._usable = [(prompt, count) for prompt, count in counted if count <= self.most]
            self.left_out = len(counted) - len(self._usable)
            if not self._usable:
                raise HybridError(
                    f"{self.prompts.path}: every prompt has more than {self.most:,} tokens, which is what "
                    "--max-model-len leaves beside the answer",
                    remedy="Give shorter prompts, a smaller --max-tokens, or --vllm-args '--max-model-len N'.",
                )
        return self._usable

    def _filling(self, at: int, room: int, length: int) -> str:
        if room <= 0:
            return ""
        usable, ids = self._fitting(), list[int]()
        between = self.tokens.encode(_BETWEEN)
        for step in range(1, len(usable)):
            ids += self._text((at + step) % len(usable))
            if len(ids) + len(between) >= room:
                # At least one token of other text.
                return self.tokens.decode(ids[: max(room - len(between), 1)])
            ids += between
        raise too_little_text(self.prompts.path, f"{len(ids) + length - room:,} tokens", length)

    def _text(self, at: int) -> list[int]:
        if at not in self._texts:
            self._texts[at] = self.tokens.encode(self._fitting()[at][0].content)
        return self._texts[at]
