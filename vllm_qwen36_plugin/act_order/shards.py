"""The arithmetic of act order over several ranks: which rows a rank holds, and in what blocks.

A kernel wants rows in blocks of one size that share their scales. Of rows that are split between ranks, a rank may
have any number from a group. So its own rows are sorted by group, and each group is filled up to whole blocks with
rows of zeros: ``y = x @ W`` becomes ``x[places] @ W[places]``, with the same weights and products of zero.
Blocks are smaller than groups, or most of what is stored would be filling; a group's blocks have equal scales.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from math import lcm

import torch

from gptq_hybrid.packing import pack_words, unpack_words

# Blocks that kernels take, the largest first: Marlin all, Machete 64 and 128, vLLM's CPU kernel any.
BLOCKS = (128, 64, 32)
# Rows are filled up to whole tiles of every kernel.
_TILE = 128
_NOTHING = -1
_CHUNK_VALUES = 1 << 24


@dataclass(frozen=True, slots=True)
class Rows:
    """What one rank stores of a weight.

    Attributes:
        places: int64 ``[stored]``: which of the rank's rows is at each place; -1 for a row of zeros.
        groups: int64 ``[stored / block]``: the group of each block; -1 for a block of zeros.
        block: rows a block.
    """

    places: torch.Tensor
    groups: torch.Tensor
    block: int

    @property
    def order(self) -> torch.Tensor:
        """The index to permute the input by, int32 ``[stored]``; a row of zeros reads its block's first input."""
        blocks = self.places.view(-1, self.block)
        first = blocks[:, :1].clamp(min=0)
        return torch.where(blocks == _NOTHING, first, blocks).flatten().to(torch.int32)


def blocks_of(group_size: int) -> list[int]:
    """List the sizes of block that a group can be cut into, the largest first."""
    return [block for block in dict.fromkeys((group_size, *BLOCKS)) if group_size % block == 0]


def rows_needed(groups: torch.Tensor, block: int) -> int:
    """Count the rows that a rank stores for rows of these ``groups`` (integers ``[rows]``), in whole tiles.

    As many as it has, if each of its groups fills blocks.
    """
    counts = torch.bincount(groups.to(torch.int64))
    filled = int((-(-counts // block) * block).sum())
    tile = lcm(block, _TILE)
    return filled if filled == len(groups) else -(-filled // tile) * tile


def arrange(groups: torch.Tensor, block: int, stored: int) -> Rows:
    """Sort a rank's rows by group, each group in whole blocks.

    Args:
        groups: integers ``[rows]``: the group of each of the rank's rows.
        block: rows a block.
        stored: rows to fill up to, at least :func:`rows_needed`.

    Raises:
        ValueError: ``stored`` is too small, or no multiple of ``block``.
    """
    groups = groups.to("cpu", torch.int64)
    counts = torch.bincount(groups)
    filled = -(-counts // block) * block
    if stored % block or stored < int(filled.sum()):
        raise ValueError(f"{stored} rows do not hold {int(filled.sum())} in blocks of {block}")
    in_order, order = torch.sort(groups, stable=True)
    # Where each group starts, with filling and without.
    starts, own = filled.cumsum(0) - filled, counts.cumsum(0) - counts
    places = torch.full((stored,), _NOTHING, dtype=torch.int64)
    places[starts[in_order] + torch.arange(len(groups)) - own[in_order]] = order
    of_blocks = torch.full((stored // block,), _NOTHING, dtype=torch.int64)
    real = torch.arange(len(counts)).repeat_interleave(filled // block)
    of_blocks[: len(real)] = real
    return Rows(places, of_blocks, block)


def choose_block(parts: Iterable[torch.Tensor], group_size: int, bits: int) -> list[tuple[int, int]]:
    """Rank the sizes of block by the bytes that they take, where all parts are stored in one shape.

    Args:
        parts: groups of the rows of each layer and rank; layers of one shape share kernels, graphs and profiles.
        group_size: rows a group.
        bits: of the weights; scales have 16.

    Returns:
        Pairs of block and stored rows, the least bytes first, and of equal ones the larger block.
    """
    parts = list(parts)
    pairs = []
    for block in blocks_of(group_size):
        stored = max(rows_needed(part, block) for part in parts)
        pairs.append((stored * bits / 8 + stored // block * 2, block, stored))
    return [(block, stored) for _, block, stored in sorted(pairs, key=lambda pair: (pair[0], -pair[1]))]


def take_rows(qweight: torch.Tensor, places: torch.Tensor, bits: int) -> torch.Tensor:
    """Take rows of a packed symmetric weight, int32 ``[rows * bits / 32, columns]``; zeros where a place is -1.

    Returns:
        int32 ``[len(places) * bits / 32, columns]``.
    """
    places = places.to(qweight.device, torch.int64)
    empty = (places == _NOTHING)[:, None]
    taken = qweight.new_empty(len(places) * bits // 32, qweight.shape[1])
    step = max(1, _CHUNK_VALUES // len(places))
    for first in range(0, qweight.shape[1], step):
        part = slice(first, first + step)
        codes = unpack_words(qweight[:, part], bits).index_select(0, places.clamp(min=0))
        taken[:, part] = pack_words(codes.masked_fill_(empty, 1 << (bits - 1)), bits)
    return taken


def take_scales(scales: torch.Tensor, groups: torch.Tensor) -> torch.Tensor:
    """Give each block the scales ``[groups, columns]`` of its group, and 0 where it is -1."""
    groups = groups.to(scales.device, torch.int64)
    return scales.index_select(0, groups.clamp(min=0)).masked_fill_((groups == _NOTHING)[:, None], 0)


def halves_of_rank(gathered: torch.Tensor, order: torch.Tensor, rank: int, ranks: int) -> torch.Tensor:
    """Take one rank's columns of `gate_up_proj`, so that its product is the rank's part of all in ``order``.

    Args:
        gathered: ``[any, ranks * 2 * n]``: gate and up of rank 0, of rank 1, and so on.
        order: integers ``[ranks * n]``.

    Returns:
        ``[any, 2 * n]``.
    """
    n = len(order) // ranks
    mine = order.to(gathered.device, torch.int64)[rank * n : (rank + 1) * n]
    gate = mine // n * (2 * n) + mine % n
    return gathered.index_select(1, torch.cat([gate, gate + n]))
