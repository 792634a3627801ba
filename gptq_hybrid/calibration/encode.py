"""Encode rows to token ids, through the model's own chat template."""

from __future__ import annotations

import struct
from collections.abc import Mapping, Sequence
from hashlib import sha256
from typing import Any

from gptq_hybrid.common.errors import HybridError

# gptqmodel drops shorter rows without saying so.
MIN_TOKENS = 10
# Texts are cut before they are tokenized: on books, tokenizing what will be cut anyway costs minutes. Only a text
# whose tokens average more characters than this loses anything, such as one of little but blanks.
_CHARACTERS_PER_TOKEN = 32


class RejectedRowError(HybridError):
    """A conversation that the model's chat template refuses."""


def encode_row(
    row: Mapping[str, Any], tokenizer: Any, max_length: int, template: Mapping[str, Any] | None = None
) -> list[int]:
    """Encode one parsed row to token ids, cut to ``max_length``.

    Args:
        row: ``{"text"}``, tokenized as it is; or ``{"messages"}`` with or without ``tools``, through the chat
            template. If the template does not use ``reasoning_content``, the thinking goes into the content.
        tokenizer: a transformers tokenizer.
        max_length: tokens kept.
        template: keyword arguments of the chat template, such as ``enable_thinking``.

    Raises:
        HybridError: messages, but no chat template.
        RejectedRowError: the chat template rejects them.
    """
    if "text" in row:
        text = row["text"]
    elif not tokenizer.chat_template:
        raise HybridError(
            "calibration rows hold `messages`, but the model has no chat template",
            remedy="Put chat_template.jinja beside config.json, or give rows with `text`.",
        )
    else:
        try:
            text = tokenizer.apply_chat_template(
                _for_template(row["messages"], tokenizer.chat_template),
                tools=row.get("tools"),
                tokenize=False,
                **(template or {}),
            )
        except Exception as error:
            raise RejectedRowError(f"the chat template rejects a calibration row: {error}") from error
    text = text[: max_length * _CHARACTERS_PER_TOKEN]
    return list(tokenizer(text, add_special_tokens=False)["input_ids"][:max_length])


def _for_template(messages: list[dict[str, Any]], template: Any) -> list[dict[str, Any]]:
    if "reasoning_content" in str(template):
        return messages
    return [
        {**message, "content": f"<think>\n{message['reasoning_content']}\n</think>\n\n{message['content']}"}
        if "reasoning_content" in message
        else message
        for message in messages
    ]


def encode_rows(
    rows: Sequence[Mapping[str, Any]], tokenizer: Any, max_length: int
) -> list[dict[str, list[int]]]:
    """Encode each row to token ids, cut to ``max_length``; gptqmodel itself cuts nothing.

    Returns:
        ``{"input_ids", "attention_mask"}`` for each row of 10 tokens or more.

    Raises:
        HybridError: as :func:`encode_row`, or no row is left.
    """
    encoded = [encode_row(row, tokenizer, max_length) for row in rows]
    return to_calibration([ids for ids in encoded if len(ids) >= MIN_TOKENS])


def to_calibration(rows: Sequence[list[int]]) -> list[dict[str, list[int]]]:
    """Put rows of token ids into the form that gptqmodel takes.

    Raises:
        HybridError: there are no rows.
    """
    if not rows:
        raise HybridError(f"no calibration row has {MIN_TOKENS} tokens or more", remedy="Give longer texts.")
    return [{"input_ids": ids, "attention_mask": [1] * len(ids)} for ids in rows]


def tokens_key(ids: Sequence[int]) -> str:
    """Hash token ids as little-endian uint32: SHA-256 in hexadecimal."""
    return sha256(struct.pack(f"<{len(ids)}I", *ids)).hexdigest()
