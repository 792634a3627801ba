"""Rows to token ids, through the model's own chat template."""

from __future__ import annotations

from typing import Any

from gptq_hybrid.checkpoint import HybridError

# gptqmodel drops shorter rows without a word.
MIN_TOKENS = 10


def encode_rows(rows: list[dict[str, Any]], tokenizer: Any, max_length: int) -> list[dict[str, list[int]]]:
    """Token ids of each row, cut to ``max_length`` (gptqmodel itself cuts nothing).

    Args:
        rows: ``{"messages": […]}`` or ``{"text": …}``.
        tokenizer: a transformers tokenizer.

    Returns:
        ``{"input_ids", "attention_mask"}`` per row; rows under 10 tokens are left out.

    Raises:
        HybridError: rows hold messages but the model has no chat template, the
            template rejects a row, or nothing is left.
    """
    if any("messages" in row for row in rows) and not tokenizer.chat_template:
        raise HybridError(
            "calibration rows hold `messages`, but the model has no chat template",
            remedy="Put chat_template.jinja beside config.json, or give rows with `text`.",
        )
    encoded = []
    for number, row in enumerate(rows):
        try:
            text = row["text"] if "text" in row else _templated(row, tokenizer)
        except Exception as error:
            raise HybridError(f"the chat template rejects calibration row {number}: {error}") from error
        ids = tokenizer(text, add_special_tokens=False)["input_ids"][:max_length]
        if len(ids) >= MIN_TOKENS:
            encoded.append({"input_ids": list(ids), "attention_mask": [1] * len(ids)})
    if not encoded:
        raise HybridError(f"no calibration row has {MIN_TOKENS} tokens or more", remedy="Give longer texts.")
    return encoded


def _templated(row: dict[str, Any], tokenizer: Any) -> str:
    text: str = tokenizer.apply_chat_template(row["messages"], tools=row.get("tools"), tokenize=False)
    return text
