"""One row of text from any source: ``text`` or ``messages``, in the form that chat templates expect."""

from __future__ import annotations

import json
import re
import unicodedata
from hashlib import sha256
from typing import Any

Row = dict[str, Any]

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


def parse_row(row: Any) -> Row:
    """Reduce ``row`` to what a calibration row or evaluation document holds.

    ``conversations`` with ``from`` and ``value`` are read as ``messages``. Tool calls in Hermes' form become
    ``tool_calls``, and a system prompt that lists the tools again is left out: the model's template writes both
    its own way.

    Returns:
        ``{"text"}``, or ``{"messages"}`` with ``tools`` if there are any; also ``domain`` and ``licence`` if they
        are strings. Messages have ``role`` and ``content``, and if present ``reasoning_content`` and
        ``tool_calls`` (arguments as an object, as Qwen3.5's template expects).

    Raises:
        ValueError: it has neither text nor messages, or they have the wrong form.
    """
    if not isinstance(row, dict):
        raise ValueError("is not a JSON object")
    messages = row.get("messages", row.get("conversations"))
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
    return parsed


def _parse_message(message: Any) -> dict[str, Any]:
    if not isinstance(message, dict):
        raise ValueError("a message is not a JSON object")
    role = message.get("role", message.get("from"))
    if not isinstance(role, str):
        raise ValueError("a message lacks its `role`")
    content = message.get("content", message.get("value"))
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
