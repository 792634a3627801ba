"""The output head for drafts over several ranks: each has an equal part of the tokens that may be drafted.

vLLM gives each rank a part of the vocabulary. The likeliest tokens have low ids, so most of a list of them would
lie on the first rank. Their channels are dealt out anew instead, once, at load.
"""

from __future__ import annotations

from typing import Any

import torch

from vllm_qwen36_plugin.ranks import agreed
from vllm_qwen36_plugin.upstream.tensor_parallel import Rank, gathered, gathered_logits, rank

from .head import DraftHead, dense_channels
from .settings import Precision

# Channels exchanged at a time: 84 MB of the 27B's from each rank.
_CHANNELS = 1 << 13


class ShardedDraftHead(DraftHead):
    """A rank's part of it: `forward` gives the logits of its own tokens, the other two those of all.

    Every rank has to call them, as it has to call the target's head.
    """

    def __init__(
        self, dense: torch.Tensor, first: int, vocabulary: int, ids: torch.Tensor | None, precision: Precision
    ) -> None:
        """Hold ``dense`` ``[tokens, k]``, the channels of this rank's tokens.

        Args:
            dense: in the target's dtype.
            first: place of its first token among all that may be drafted.
            vocabulary: tokens of the model.
            ids: of all tokens that may be drafted, as for :class:`DraftHead`.
            precision: of the weights.

        Raises:
            ValueError: its logits differ from the target's by more than ``precision`` explains.
        """
        torch.nn.Module.__init__(self)
        self._hold(dense, vocabulary, ids, precision)
        self.first = first
        # Channels beyond the vocabulary are padding.
        tokens = vocabulary if ids is None else len(ids)
        self.own = max(0, min(len(dense), tokens - first))

    def _over_all(self, hidden: torch.Tensor) -> torch.Tensor:
        return gathered_logits(self(hidden))

    def top(self, hidden: torch.Tensor) -> torch.Tensor:
        """Return the likeliest token at each position, int64 ``[positions]``; the ranks exchange only their own."""
        logits = self(hidden)[..., : self.own]
        if self.own:
            value, place = logits.max(dim=-1)
        else:
            value, place = (
                logits.new_full(logits.shape[:-1], float("-inf")),
                logits.new_zeros(logits.shape[:-1], dtype=torch.int64),
            )
        # float32 has room for any 16-bit logit and for 2**24 tokens.
        mine = torch.stack([value.float(), (place + self.first).float()], dim=-1)
        each = gathered_logits(mine).unflatten(-1, (-1, 2))
        best = each[..., 0].argmax(dim=-1, keepdim=True)
        places = each[..., 1].gather(-1, best).squeeze(-1).long()
        return places if self.ids is None else self.ids[places]


def make_sharded(
    lm_head: Any, vocabulary: int, ids: torch.Tensor | None, precision: Precision
) -> ShardedDraftHead:
    """Make this rank's part of a head for drafts. Every rank has to call it.

    Args:
        lm_head: vLLM's, this rank's part of the target's head.
        vocabulary: tokens of the model.
        ids: int64, ascending, a multiple of the ranks; None for all tokens.
        precision: of the copy's weights.

    Raises:
        RankError: it cannot be made on some rank; none has one then.
    """
    here = rank()
    # None for all: then the target's own parts are equal already.
    mine = None if ids is None else agreed(lambda: _own_ids(lm_head, ids))
    part = agreed(lambda: dense_channels(lm_head, mine))
    if ids is None or mine is None:
        dense, first = part, here.number * len(part)
    else:
        dense = _dealt_out(part, mine, ids, _start(lm_head), here)
        first = here.number * len(dense)
    return agreed(lambda: ShardedDraftHead(dense, first, vocabulary, ids, precision))


def _start(lm_head: Any) -> int:
    return int(lm_head.shard_indices.org_vocab_start_index)


def _own_ids(lm_head: Any, ids: torch.Tensor) -> torch.Tensor:
    """Return the tokens among ``ids`` whose channels this rank has, numbered from its first."""
    start, end = _start(lm_head), int(lm_head.shard_indices.org_vocab_end_index)
    return ids[(ids >= start) & (ids < end)] - start


def _dealt_out(
    part: torch.Tensor, mine: torch.Tensor, ids: torch.Tensor, start: int, here: Rank
) -> torch.Tensor:
    """Exchange channels until each rank has those of its equal part of ``ids``."""
    share = len(ids) // here.size
    wanted = range(here.number * share, (here.number + 1) * share)
    # Where the tokens of this rank's part of the vocabulary are in the list: side by side, as both are ascending.
    first = int((ids < start).sum())
    have = range(first, first + len(mine))
    dense = part.new_empty(share, part.shape[1])
    owner = torch.zeros(len(ids), dtype=torch.int64)
    for number, (begin, count) in enumerate(_ranges(first, len(mine))):
        owner[begin : begin + count] = number
    for begin in range(0, len(ids), _CHANNELS):
        end = min(begin + _CHANNELS, len(ids))
        sent = part.new_zeros(end - begin, part.shape[1])
        low, high = max(begin, have.start), min(end, have.stop)
        if low < high:
            sent[low - begin : high - begin] = part[low - have.start : high - have.start]
        each = gathered(sent[None], 0)
        low, high = max(begin, wanted.start), min(end, wanted.stop)
        if low < high:
            rows = torch.arange(low - begin, high - begin, device=each.device)
            dense[low - wanted.start : high - wanted.start] = each[owner[low:high].to(each.device), rows]
    return dense


def _ranges(first: int, count: int) -> list[tuple[int, int]]:
    """Return, by rank, where the tokens of its vocabulary begin in the list, and how many there are."""
    each = gathered(torch.tensor([[first, count]]), 0)
    return [(int(begin), int(number)) for begin, number in each.tolist()]
