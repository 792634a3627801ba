"""One row of text from any source: ``text`` or ``messages``, in the form that chat templates expect."""

from __future__ import annotations

import json
import re
import unicodedata
from hashlib import sha256
from typing import Any

Row = dict[str, Any]


class LeftOutError(ValueError):
    """A well-formed row that is no use as text; ``reason`` is the word under which such rows are counted."""

    def __init__(self, reason: str, message: str) -> None:
        super().__init__(message)
        self.reason = reason


MALFORMED = "malformed"


class LeftOut(Row):
    """Stands in a stream of rows for one that cannot be used. It is empty, so nothing takes it for text.

    Attributes:
        domain: of the row, if it has one, without what UTF-8 cannot hold.
        where: file and line, for errors; empty for rows of no file.
        reason: the word under which it is counted.
        message: what is wrong, to follow the name of the row.
    """

    def __init__(self, error: ValueError, *, domain: Any = None, where: str = "") -> None:
        super().__init__()
        own = domain if isinstance(domain, str) and domain else None
        self.domain = own and own.encode("utf-8", "replace").decode("utf-8")
        self.where = where
        self.reason = error.reason if isinstance(error, LeftOutError) else MALFORMED
        self.message = str(error)


# Other names for the roles: ShareGPT's, and OpenAI's older and newer ones.
_ROLES = {
    "human": "user",
    "gpt": "assistant",
    "bot": "assistant",
    "model": "assistant",
    "function_call": "assistant",
    "function": "tool",
    "function_response": "tool",
    "observation": "tool",
    "developer": "system",
}
_REASONING_KEYS = ("reasoning_content", "reasoning", "thinking")
_THINK_END = "</think>"
# How Hermes, and data made for it, write calls and their results into the text.
_HERMES_CALL = re.compile(r"\s*<tool_call>\s*(\{.*?\})\s*</tool_call>\s*", re.DOTALL)
_HERMES_RESULT = re.compile(r"\s*<tool_response>\s*(.*?)\s*</tool_response>\s*", re.DOTALL)
# Types of a part of a message that is text: of OpenAI's chat API, and of its Responses API.
_TEXT_PARTS = ("text", "input_text", "output_text")
_MEDIA = {"image": "images", "audio": "audio", "video": "video"}


def parse_row(row: Any) -> Row:
    """Reduce ``row`` to what a calibration row or evaluation document holds.

    ``conversations`` with ``from`` and ``value`` are read as ``messages``. A message's content may be text or a
    list of parts; text parts are joined. Tool calls in Hermes' form become
    ``tool_calls``, and a system prompt that lists the tools again is left out: the model's template writes both
    its own way.

    Returns:
        ``{"text"}``, or ``{"messages"}`` with ``tools`` if there are any; also ``domain`` and ``licence`` if they
        are strings. Messages have ``role`` and ``content``, and if present ``reasoning_content`` and
        ``tool_calls`` (arguments as an object, as Qwen3.5's template expects).

    Raises:
        ValueError: it has neither text nor messages, or they have the wrong form.
        LeftOutError: it holds half a character, or parts that are no text, such as images.
    """
    if not isinstance(row, dict):
        raise ValueError("is not a JSON object")
    messages = row.get("messages")
    if messages is None:
        messages = row.get("conversations")
    parsed: Row
    if messages is not None:
        if not isinstance(messages, list) or not messages:
            raise ValueError("`messages` is not a non-empty list")
        parsed = {"messages": [_parse_message(message) for message in messages]}
        if row.get("tools"):
            parsed["tools"] = _parse_tools(row["tools"])
            parsed["messages"] = [m for m in parsed["messages"] if not _lists_tools(m)]
        if not parsed["messages"]:
            raise ValueError("`messages` holds nothing but tool definitions")
    elif isinstance(row.get("text"), str) and row["text"].strip():
        parsed = {"text": row["text"]}
    else:
        raise ValueError("has neither `messages` nor a non-empty `text`")
    licence = row.get("licence", row.get("license"))
    for key, value in (("domain", row.get("domain")), ("licence", licence)):
        if isinstance(value, str) and value:
            parsed[key] = value
    _refuse_half_characters(parsed)
    return parsed


def _refuse_half_characters(value: Any) -> None:
    """Refuse text that no tokenizer can encode.

    JSON can write each half of an emoji alone, as ``\\ud83d``, and texts cut by UTF-16 units end that way.
    """
    if isinstance(value, dict):
        for key, item in value.items():
            _refuse_half_characters(key)
            _refuse_half_characters(item)
    elif isinstance(value, list):
        for item in value:
            _refuse_half_characters(item)
    elif isinstance(value, str) and not value.isascii():
        try:
            value.encode("utf-8")
        except UnicodeEncodeError as error:
            code = f"\\u{ord(value[error.start]):04x}"
            raise LeftOutError(
                "with_broken_text", f"holds half a character, the lone surrogate {code}"
            ) from error


def _parse_message(message: Any) -> dict[str, Any]:
    if not isinstance(message, dict):
        raise ValueError("a message is not a JSON object")
    role = message.get("role", message.get("from"))
    if not isinstance(role, str):
        raise ValueError("a message lacks its `role`")
    content = message.get("content", message.get("value"))
    if isinstance(content, list) and content:
        content = _join_parts(content)
    calls = message.get("tool_calls")
    if not isinstance(content, str) and not calls:
        raise ValueError("a message has no text `content`")
    parsed: dict[str, Any] = {"role": _ROLES.get(role, role), "content": content or ""}
    if parsed["role"] == "tool":
        parsed["content"] = _HERMES_RESULT.sub(r"\1", parsed["content"])
    if parsed["role"] == "assistant":
        reasoning = next((message[key] for key in _REASONING_KEYS if isinstance(message.get(key), str)), None)
        if reasoning is None and _THINK_END in parsed["content"]:
            # Qwen3.8's template, unlike 3.6's, no longer looks for the thinking block in the content.
            before, _, parsed["content"] = parsed["content"].partition(_THINK_END)
            parsed["content"] = parsed["content"].lstrip("\n")
            reasoning = before.strip().removeprefix("<think>")
        if reasoning and reasoning.strip():
            parsed["reasoning_content"] = reasoning.strip("\n")
        if not calls:
            parsed["content"], calls = _split_hermes_calls(parsed["content"])
        if calls:
            parsed["tool_calls"] = [_parse_tool_call(call) for call in calls]
    return parsed


def _join_parts(parts: list[Any]) -> str:
    """Join the text parts of a message with nothing between them, as Qwen's chat template does."""
    texts: list[str] = []
    for part in parts:
        if isinstance(part, str):
            texts.append(part)
            continue
        if not isinstance(part, dict):
            raise ValueError("a part of a message's `content` is neither text nor a JSON object")
        kind = part.get("type")
        if kind not in _TEXT_PARTS:
            # Some data sets give parts no type. Parquet gives each the columns of all, with null for the others.
            filled = [str(kind), *(key for key, value in part.items() if value is not None)]
            for medium, plural in _MEDIA.items():
                if any(medium in name for name in filled):
                    raise LeftOutError(f"with_{plural}", f"holds {plural}, and only text is taken")
            if kind is not None:
                raise LeftOutError(
                    "with_other_parts", f"holds a part of type {kind!r}, and only text is taken"
                )
        if not isinstance(part.get("text"), str):
            raise ValueError("a text part of a message's `content` has no `text`")
        texts.append(part["text"])
    return "".join(texts)


def _split_hermes_calls(content: str) -> tuple[str, list[Any]]:
    """Take the calls in Hermes' form out of ``content``; leave it unchanged if one of them is not JSON."""
    try:
        calls = [json.loads(body) for body in _HERMES_CALL.findall(content)]
    except ValueError:
        return content, []
    return (_HERMES_CALL.sub("\n", content).strip(), calls) if calls else (content, [])


def _lists_tools(message: dict[str, Any]) -> bool:
    return message["role"] == "system" and "<tools>" in message["content"]


def _parse_tool_call(call: Any) -> dict[str, Any]:
    function = call.get("function", call) if isinstance(call, dict) else None
    if not isinstance(function, dict) or not isinstance(function.get("name"), str):
        raise ValueError("a tool call lacks its function `name`")
    arguments = function.get("arguments") or {}
    if isinstance(arguments, str):
        try:
            arguments = json.loads(arguments)
        except ValueError as error:
            raise ValueError("a tool call's `arguments` are not valid JSON") from error
    if not isinstance(arguments, dict):
        raise ValueError("a tool call's `arguments` are not an object")
    # Parquet gives every call the columns of all calls, with null for those it does not have.
    arguments = {key: value for key, value in arguments.items() if value is not None}
    return {"type": "function", "function": {"name": function["name"], "arguments": arguments}}


def _parse_tools(tools: Any) -> list[Any]:
    try:
        tools = json.loads(tools) if isinstance(tools, str) else tools
        tools = [json.loads(tool) if isinstance(tool, str) else tool for tool in tools]
    except (TypeError, ValueError) as error:
        raise ValueError("`tools` is not a list of tool definitions") from error
    if not all(isinstance(tool, dict) for tool in tools):
        raise ValueError("`tools` is not a list of tool definitions")
    return [_without_nulls(tool) for tool in tools]


def _without_nulls(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _without_nulls(item) for key, item in value.items() if item is not None}
    return [_without_nulls(item) for item in value] if isinstance(value, list) else value


def row_text(row: Row) -> str:
    """Return the text by which rows are compared: all of it, or what was said in a conversation.

    System prompts and tool definitions are left out, because many conversations share them. A conversation of
    nothing but system prompts is compared by those.
    """
    if "text" in row:
        return str(row["text"])
    messages = [message for message in row["messages"] if message["role"] != "system"] or row["messages"]
    parts: list[str] = []
    for message in messages:
        parts += [message.get("reasoning_content", ""), message["content"]]
        parts += [json.dumps(call["function"], sort_keys=True) for call in message.get("tool_calls", ())]
    return "\n".join(part for part in parts if part)


def normalize_text(text: str) -> str:
    """Fold compatibility forms (NFKC) and case, and make each run of white space one space."""
    return " ".join(unicodedata.normalize("NFKC", text).casefold().split())


def row_key(row: Row) -> str:
    """Hash the normalized text of a row: SHA-256 in hexadecimal."""
    return sha256(normalize_text(row_text(row)).encode("utf-8", "surrogatepass")).hexdigest()


def shuffle_key(seed: int, key: str) -> str:
    """Return a sort key that shuffles rows by ``seed``, whatever order they came in; ``key`` is a row's key."""
    return sha256(f"{seed}:{key}".encode()).hexdigest()
