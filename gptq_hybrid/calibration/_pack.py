"""Several whole documents in one row."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from gptq_hybrid.common.errors import HybridError

# Off: in a packed row the recurrent state and the attention of one document go on into the next, so every
# document but the first is calibrated in a context it would not be served in; and no measurement says yet
# that fuller rows make up for it.
DEFAULT_PACK = False

_END_OF_TEXT = "<|endoftext|>"


def end_of_text(tokenizer: Any) -> int:
    """The token between documents: ``<|endoftext|>``, else the tokenizer's end-of-sequence token.

    Raises:
        HybridError: it has neither.
    """
    found = tokenizer.get_vocab().get(_END_OF_TEXT, tokenizer.eos_token_id)
    if found is None:
        raise HybridError(
            "the tokenizer has no end-of-text token to put between documents", remedy="Use --no-pack."
        )
    return int(found)


def pack_rows(documents: Sequence[list[int]], length: int, separator: int) -> list[list[int]]:
    """Put documents into as few rows of at most ``length`` tokens as first-fit decreasing finds.

    The longest document goes first, each into the first row with room for it and for the separator before
    it. Documents are not split, and hold at most ``length`` tokens.
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
