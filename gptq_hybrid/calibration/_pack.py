"""Pack several whole documents into one row."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from gptq_hybrid.common.errors import HybridError

# Off: in a packed row the recurrent state and the attention of one document continue into the next. So every
# document but the first is calibrated in a context that serving never gives it. No measurement says yet that
# fuller rows make up for that.
DEFAULT_PACK = False

_END_OF_TEXT = "<|endoftext|>"


def end_of_text(tokenizer: Any) -> int:
    """Return the token between documents: ``<|endoftext|>``, else the tokenizer's end-of-sequence token.

    Raises:
        HybridError: the tokenizer has neither.
    """
    token = tokenizer.get_vocab().get(_END_OF_TEXT, tokenizer.eos_token_id)
    if token is None:
        raise HybridError(
            "the tokenizer has no end-of-text token to put between documents", remedy="Use --no-pack."
        )
    return int(token)


def pack_rows(documents: Sequence[list[int]], length: int, separator: int) -> list[list[int]]:
    """Put documents into rows of at most ``length`` tokens, by first-fit decreasing.

    The longest document goes first. Each goes into the first row that has room for it and for the separator before
    it. Documents are not split; none may hold more than ``length`` tokens.
    """
    rows: list[list[int]] = []
    open_rows: list[list[int]] = []
    for document in sorted(documents, key=lambda ids: (-len(ids), ids)):
        row = next((row for row in open_rows if len(row) + 1 + len(document) <= length), None)
        if row is None:
            row = list(document)
            rows.append(row)
            open_rows.append(row)
        else:
            row += [separator, *document]
        if len(row) >= length - 1:
            open_rows = [other for other in open_rows if other is not row]
    return rows
