"""Token rows of several documents each, and the attention masks that keep them apart."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn.attention.flex_attention import BlockMask, create_block_mask

END_OF_TEXT = "<|endoftext|>"


class Rows(NamedTuple):
    """Token rows with what separates their documents.

    tokens: [batch, length]; document: number of the document within the row, same shape; starts: True at each first
    token; causal, drafting: attention masks of the layers and of the second draft step (queries x 2 * length keys).
    """

    tokens: Tensor
    document: Tensor
    starts: Tensor
    causal: Tensor | BlockMask
    drafting: Tensor | BlockMask | None


def make_rows(tokens: Tensor, end: int, *, drafting: bool = True) -> Rows:
    """`Rows` of `tokens` [batch, length]; a document ends with the token `end`."""
    batch, length = tokens.shape
    starts = torch.zeros_like(tokens, dtype=torch.bool)
    starts[:, 1:] = tokens[:, :-1] == end
    document = starts.int().cumsum(1).int()
    starts[:, 0] = True
    if tokens.is_cuda:

        def causal(b: Tensor, h: Tensor, q: Tensor, k: Tensor) -> Tensor:
            return (q >= k) & (document[b, q] == document[b, k])

        def draft(b: Tensor, h: Tensor, q: Tensor, k: Tensor) -> Tensor:
            first = (k <= q) & (document[b, q] == document[b, k % length])
            return torch.where(k < length, first, k - length == q)

        masks = [
            create_block_mask(mod, batch, None, length, keys, device=tokens.device, _compile=True)
            for mod, keys in ((causal, length), (draft, 2 * length))[: 1 + drafting]
        ]
        return Rows(tokens, document, starts, masks[0], masks[1] if drafting else None)
    same = document[:, :, None] == document[:, None, :]
    mask = (same & torch.ones(length, length, dtype=torch.bool).tril())[:, None]
    eye = torch.eye(length, dtype=torch.bool).expand(batch, 1, -1, -1)
    return Rows(tokens, document, starts, mask, torch.cat((mask, eye), -1))
