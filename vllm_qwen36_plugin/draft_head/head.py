"""The output head that drafts are drawn from: some channels of the target's, in fewer bits."""

from __future__ import annotations

from typing import Any

import torch

from .methods import LinearStandIn, quantizing_method
from .room import POSITIONS
from .selftest import require_agreement
from .settings import Precision

# Unit vectors that a packed head is read with at a time; its result for them is [_PROBE, vocabulary].
_PROBE = 256


class DraftHead(torch.nn.Module):  # type: ignore[misc]
    """Logits over the tokens that may be drafted; all others have minus infinity.

    A softmax over them is a distribution that the rejection sampler can correct: a token that is never drafted has
    probability 0 in it.
    """

    ids: torch.Tensor | None
    # Of a copy of the whole head: more are left to the target's own. What start-up times may lower it.
    most_positions = POSITIONS[-1]

    def __init__(
        self, lm_head: torch.nn.Module, vocabulary: int, ids: torch.Tensor | None, precision: Precision
    ) -> None:
        """Copy from the target's ``lm_head`` as it is now.

        Args:
            lm_head: vLLM's, dense or packed, whole.
            vocabulary: tokens of the model; channels of ``lm_head`` beyond are padding.
            ids: int64, ascending: the tokens that may be drafted; None for all.
            precision: of the copy's weights.

        Raises:
            ValueError: its logits differ from the target's by more than ``precision`` explains.
        """
        super().__init__()
        self._hold(dense_channels(lm_head, ids), vocabulary, ids, precision)

    def _hold(
        self, dense: torch.Tensor, vocabulary: int, ids: torch.Tensor | None, precision: Precision
    ) -> None:
        self.vocabulary, self.precision = vocabulary, precision
        self.register_buffer("ids", None if ids is None else ids.to(dense.device), persistent=False)
        self.linear = LinearStandIn(dense)
        method = quantizing_method(dense, precision)
        self._method = method
        if method is not None:
            method.process_weights_after_loading(self.linear)
            require_agreement(dense, self, precision)

    def leaves(self, positions: int) -> bool:
        """Whether so many positions are left to the target's own head: a copy of it saves bytes alone."""
        return self.ids is None and positions > self.most_positions

    @property
    def bytes(self) -> int:
        """Bytes this head holds. Without ``ids`` and quantization they are the target's own weight."""
        return sum(p.numel() * p.element_size() for p in [*self.linear.parameters(), *self.buffers()])

    def forward(self, hidden: torch.Tensor) -> torch.Tensor:
        """Return the logits of the tokens ``ids`` for ``hidden`` ``[positions, k]``: ``[positions, len(ids)]``."""
        if self._method is None:
            return torch.nn.functional.linear(hidden, self.linear.weight)
        out: torch.Tensor = self._method.apply(self.linear, hidden)
        return out

    def logits(self, hidden: torch.Tensor) -> torch.Tensor:
        """Return the logits of all tokens, ``[positions, vocabulary]``."""
        logits = self._over_all(hidden)
        if self.ids is None:
            return logits[..., : self.vocabulary]
        over_all = logits.new_full((len(logits), self.vocabulary), float("-inf"))
        return over_all.index_copy_(1, self.ids, logits)

    def _over_all(self, hidden: torch.Tensor) -> torch.Tensor:
        """Return the logits of all tokens that may be drafted."""
        return self(hidden)

    def top(self, hidden: torch.Tensor) -> torch.Tensor:
        """Return the likeliest token at each position, int64 ``[positions]``."""
        logits = self(hidden)
        if self.ids is None:
            return logits[..., : self.vocabulary].argmax(dim=-1)
        return self.ids[logits.argmax(dim=-1)]


def dense_weight(lm_head: Any) -> torch.Tensor | None:
    """Return the weight of a head in 16 or 32 bits, ``[channels, k]``; None of a packed one."""
    weight = getattr(lm_head, "weight", None)
    if isinstance(weight, torch.Tensor) and weight.is_floating_point() and weight.itemsize > 1:
        return weight.data
    return None


def dense_channels(lm_head: Any, ids: torch.Tensor | None) -> torch.Tensor:
    """Return the channels ``ids`` of an output head, ``[len(ids), k]``; all of a dense head are not copied.

    A packed head is read by multiplying unit vectors: the result is its weight, whatever the layout.

    Raises:
        TypeError: it has neither a weight nor a linear method.
    """
    weight = dense_weight(lm_head)
    if weight is not None:
        return weight if ids is None else weight[ids.to(weight.device)]
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
        products = method.apply(lm_head, units)
        columns.append((products if ids is None else products[:, ids.to(products.device)]).t().contiguous())
    return torch.cat(columns, dim=1)
