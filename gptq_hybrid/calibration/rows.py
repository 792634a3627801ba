"""One row of text, whatever it came from: `text` or `messages`, brought to the form chat templates expect."""

from __future__ import annotations

import json
import re
import unicodedata
from hashlib import sha256
from typing import Any

Row = dict[str, Any]

# ShareGPT's names for who speaks, and OpenAI's older and newer ones.
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
# How Hermes, and data made for it, writes calls and their results into the text.
_HERMES_CALL = re.compile(r"\s*<tool_call>\s*(\{.*?\})\s*</tool_call>\s*", re.DOTALL)
_HERMES_RESULT = re.compile(r"\s*<tool_response>\s*(.*?)\s*</tool_response>\s*", re.DOTALL)


def check_row(row: Any) -> Row:
    """``row`` reduced to what a calibration or evaluation document holds.

    Returns:
        ``{"text"}``, or ``{"messages"}`` with ``tools`` where there are any; ``domain`` and ``licence``
        are kept where they are strings. Messages have ``role`` and ``content``, and where given
        ``reasoning_content`` and ``tool_calls`` (arguments as an object, as Qwen3.5's template wants them).
        ``conversations`` with ``from`` and ``value`` counts as ``messages``. Tool calls in Hermes' form become
        ``tool_calls``, and a system prompt that lists the tools once more is left out: the model's template
        writes both its own way.

    Raises:
        ValueError: it has neither text nor messages, or one of the wrong form.
    """
    if not isinstance(row, dict):
        raise ValueError("is not a JSON object")
    messages = row.get("messages", row.get("conversations"))
    found: Row
    if messages is not None:
        if not isinstance(messages, list) or not messages:
            raise ValueError("`messages` is not a non-empty list")
        found = {"messages": [_message(message) for message in messages]}
        if row.get("tools"):
            found["tools"] = _tools(row["tools"])
            found["messages"] = [m for m in found["messages"] if not _lists_tools(m)]
        if not found["messages"]:
            raise ValueError("`messages` holds nothing but tool definitions")
    elif isinstance(row.get("text"), str) and row["text"].strip():
        found = {"text": row["text"]}
    else:
        raise ValueError("has neither `messages` nor a non-empty `text`")
    licence = row.get("licence", row.get("license"))
    for key, value in (("domain", row.get("domain")), ("licence", licence)):
        if isinstance(value, str) and value:
            found[key] = value
    return found


def _message(message: Any) -> dict[str, Any]:
    if not isinstance(message, dict):
        raise ValueError("a message is not a JSON object")
    role = message.get("role", message.get("from"))
    if not isinstance(role, str):
        raise ValueError("a message lacks its `role`")
    content = message.get("content", message.get("value"))
    calls = message.get("tool_calls")
    if not isinstance(content, str) and not calls:
        raise ValueError("a message has no text `content`")
    found: dict[str, Any] = {"role": _ROLES.get(role, role), "content": content or ""}
    if found["role"] == "tool":
        found["content"] = _HERMES_RESULT.sub(r"\1", found["content"])
    if found["role"] == "assistant":
        reasoning = next((message[key] for key in _REASONING_KEYS if isinstance(message.get(key), str)), None)
        if reasoning is None and _THINK_END in found["content"]:
            # Qwen3.8's template, unlike 3.6's, no longer finds the block in the content.
            before, _, found["content"] = found["content"].partition(_THINK_END)
            found["content"] = found["content"].lstrip("\n")
            reasoning = before.strip().removeprefix("<think>")
        if reasoning and reasoning.strip():
            found["reasoning_content"] = reasoning.strip("\n")
        if not calls:
            found["content"], calls = _hermes_calls(found["content"])
        if calls:
            found["tool_calls"] = [_tool_call(call) for call in calls]
    return found


def _hermes_calls(content: str) -> tuple[str, list[Any]]:
    """Content without the calls in Hermes' form, and these; unchanged if one of them is no JSON."""
    try:
        calls = [json.loads(body) for body in _HERMES_CALL.findall(content)]
    except ValueError:
        return content, []
    return (_HERMES_CALL.sub("\n", content).strip(), calls) if calls else (content, [])


def _lists_tools(message: dict[str, Any]) -> bool:
    return message["role"] == "system" and "<tools>" in message["content"]


def _tool_call(call: Any) -> dict[str, Any]:
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
    # Parquet gives every call the columns of all calls; those it does not have are null.
    arguments = {key: value for key, value in arguments.items() if value is not None}
    return {"type": "function", "function": {"name": function["name"], "arguments": arguments}}


def _tools(tools: Any) -> list[Any]:
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
    """What tells two rows apart: the text, or what was said, without system prompts and tool definitions.

    Many conversations share those. A conversation of nothing else is compared by them.
    """
    if "text" in row:
        return str(row["text"])
    said = [message for message in row["messages"] if message["role"] != "system"] or row["messages"]
    parts: list[str] = []
    for message in said:
        parts += [message.get("reasoning_content", ""), message["content"]]
        parts += [json.dumps(call["function"], sort_keys=True) for call in message.get("tool_calls", ())]
    return "\n".join(part for part in parts if part)


def normalized(text: str) -> str:
    """Compatibility forms folded (NFKC), case folded, each run of white space one space."""
    return " ".join(unicodedata.normalize("NFKC", text).casefold().split())


def row_key(row: Row) -> str:
    """SHA-256 of the normalized text of a row, in hexadecimal."""
    return sha256(normalized(row_text(row)).encode("utf-8", "surrogatepass")).hexdigest()


def drawn(seed: int, key: str) -> str:
    """A row's place in the order of ``seed``: sorting by it shuffles, whatever the order rows came in."""
    return sha256(f"{seed}:{key}".encode()).hexdigest()
