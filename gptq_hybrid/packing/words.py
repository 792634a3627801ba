"""Small unsigned integers in int32 words: one little-endian stream of bits, along dimension 0.

With 2, 4 or 8 bits no value crosses a word. With 3 bits 32 values fill three words, and
values 10 and 21 of each 32 lie in two of them.
"""

from __future__ import annotations

import torch

_WORD = 32


def pack_words(values: torch.Tensor, bits: int) -> torch.Tensor:
    """Pack integers ``[rows, columns]`` below ``2**bits`` into int32 words ``[rows * bits / 32, columns]``.

    Raises:
        ValueError: the rows do not fill whole words.
    """
    rows, columns = values.shape
    if rows * bits % _WORD:
        raise ValueError(f"{rows} values of {bits} bits do not fill whole 32-bit words")
    words = torch.zeros(rows * bits // _WORD, columns, dtype=torch.int32, device=values.device)
    # Values that start at the same bit of their word, one period of words apart, are written together.
    period = _period(bits)
    for first in range(period):
        word, shift = divmod(first * bits, _WORD)
        part = values[first::period].to(torch.int32)
        step = period * bits // _WORD
        words[word::step] |= part << shift
        if shift + bits > _WORD:
            words[word + 1 :: step] |= part >> (_WORD - shift)
    return words


def unpack_words(words: torch.Tensor, bits: int) -> torch.Tensor:
    """Undo :func:`pack_words`: uint8 ``[words * 32 / bits, columns]``.

    Raises:
        ValueError: the words hold no whole number of values.
    """
    rows, columns = words.shape
    if rows * _WORD % bits:
        raise ValueError(f"{rows} words hold no whole number of {bits}-bit values")
    values = torch.empty(rows * _WORD // bits, columns, dtype=torch.uint8, device=words.device)
    mask, period = (1 << bits) - 1, _period(bits)
    step = period * bits // _WORD
    for first in range(period):
        word, shift = divmod(first * bits, _WORD)
        # The shift of a negative word fills with ones, which the mask takes off again.
        part = words[word::step] >> shift
        if shift + bits > _WORD:
            # Here those ones reach into the field, so they go first.
            part = (part & ((1 << (_WORD - shift)) - 1)) | (words[word + 1 :: step] << (_WORD - shift))
        values[first::period] = (part & mask).to(torch.uint8)
    return values


def _period(bits: int) -> int:
    """Count the values after which the stream is at the start of a word again."""
    return _WORD // bits if _WORD % bits == 0 else _WORD
