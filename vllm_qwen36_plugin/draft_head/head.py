"""The output head that drafts are drawn from: some rows of the target's, in fewer bits."""

from __future__ import annotations

from typing import Any

import torch

from .methods import on_load
from .selftest import require_agreement
from .settings import Form

# Unit vectors at a time that a packed head is read with; its result for them is [_PROBE, vocabulary].
_PROBE = 256


class DraftHead(torch.nn.Module):  # type: ignore[misc]
    """Logits over the tokens that may be drafted; all others have minus infinity.

    A softmax over them is a distribution that the rejection sampler knows how to correct: a token that is never
    drafted has probability 0 in it.
    """

    ids: torch.Tensor | None

    def __init__(
        self, lm_head: torch.nn.Module, vocabulary: int, ids: torch.Tensor | None, form: Form
    ) -> None:
        """Made of the target's ``lm_head`` as it is now.

        Args:
            lm_head: vLLM's, dense or packed, on one GPU.
            vocabulary: tokens of the model; rows of ``lm_head`` beyond are padding.
            ids: int64, ascending, of the tokens that may be drafted; None for all.
            form: of its weights.

        Raises:
            ValueError: its logits are not the target's within what ``form`` explains.
        """
        super().__init__()
        self.vocabulary = vocabulary
        rows = dense_rows(lm_head, ids)
        self.register_buffer("ids", None if ids is None else ids.to(rows.device), persistent=False)
        self.linear = torch.nn.Module()
        method = on_load(rows, form)
        self.linear.weight = torch.nn.Parameter(rows, requires_grad=False)
        self._method = method
        if method is not None:
            method.process_weights_after_loading(self.linear)
            require_agreement(rows, self, form)

    @property
    def bytes(self) -> int:
        """Bytes of its own: the target's rows are no copy where all of them are used as they are."""
        return sum(p.numel() * p.element_size() for p in [*self.linear.parameters(), *self.buffers()])

    def forward(self, hidden: torch.Tensor) -> torch.Tensor:
        """``hidden`` ``[rows, k]``: logits of the tokens of ``ids``, ``[rows, len(ids)]``."""
        if self._method is None:
            return torch.nn.functional.linear(hidden, self.linear.weight)
        out: torch.Tensor = self._method.apply(self.linear, hidden)
        return out

    def logits(self, hidden: torch.Tensor) -> torch.Tensor:
        """Of all tokens, ``[rows, vocabulary]``."""
        few = self(hidden)
        if self.ids is None:
            return few[..., : self.vocabulary]
        all_ = few.new_full((len(few), self.vocabulary), float("-inf"))
        return all_.index_copy_(1, self.ids, few)

    def top(self, hidden: torch.Tensor) -> torch.Tensor:
        """The likeliest token of each row, int64 ``[rows]``."""
        few = self(hidden)
        if self.ids is None:
            return few[..., : self.vocabulary].argmax(dim=-1)
        return self.ids[few.argmax(dim=-1)]


def dense_rows(lm_head: Any, ids: torch.Tensor | None) -> torch.Tensor:
    """Rows of an output head, ``[len(ids), k]``, a copy unless all are asked for and the head is dense.

    A packed head is asked for what it makes of unit vectors: that is its weight, whatever the layout.

    Raises:
        TypeError: it has neither a weight nor a linear method.
    """
    weight = getattr(lm_head, "weight", None)
    if isinstance(weight, torch.Tensor) and weight.is_floating_point() and weight.itemsize > 1:
        return weight.data if ids is None else weight.data[ids.to(weight.device)]
    method = getattr(lm_head, "quant_method", None)
    if method is None:
        raise TypeError(f"{type(lm_head).__name__} is no output head")
    like = next(p for p in lm_head.parameters() if p.is_floating_point())
    # A head has as many inputs as the embedding has dimensions.
    width = int(lm_head.embedding_dim)
    columns = []
    for first in range(0, width, _PROBE):
        units = torch.zeros(min(_PROBE, width - first), width, dtype=like.dtype, device=like.device)
        units[torch.arange(len(units)), first + torch.arange(len(units))] = 1
        found = method.apply(lm_head, units)
        columns.append((found if ids is None else found[:, ids.to(found.device)]).t().contiguous())
    return torch.cat(columns, dim=1)
