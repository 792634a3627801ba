"""The arithmetic of act order: rows sorted by group, and the permutation that the input then needs.

GPTQ with ``desc_act`` numbers a row's group by its place in order of importance: ``g_idx[order[i]]`` is
``i // group_size``. So each group has ``group_size`` rows (the last one may have fewer), anywhere in the matrix.
Sorting by ``g_idx`` puts them side by side: ``y = x @ W`` is ``x[order] @ W[order]``.
"""

from __future__ import annotations

import torch

from gptq_hybrid.packing import natural_g_idx, pack_words, unpack_words

# Values of the sort in flight at a time: 16 MiB of them, and as much again in order, whatever the layer's width.
_CHUNK_VALUES = 1 << 24


def row_order(g_idx: torch.Tensor, group_size: int) -> torch.Tensor | None:
    """Return the rows in order of their group, int32 ``[rows]``; None if they already lie in order.

    Rows of a group keep their order (a stable sort), so equal ``g_idx`` give equal orders.

    Args:
        g_idx: integers ``[rows]``, the group of each row.
        group_size: rows a group; -1 for one group.

    Raises:
        ValueError: a group has too many or too few rows, or there are too many groups.
    """
    groups = g_idx.to("cpu", torch.int64)
    natural = natural_g_idx(len(groups), group_size).to(torch.int64)
    if torch.equal(groups, natural):
        return None
    in_order, order = torch.sort(groups, stable=True)
    if not torch.equal(in_order, natural):
        wrong = int(in_order[in_order != natural][0])
        count = int((groups == wrong).sum())
        raise ValueError(
            f"group {wrong} has {count} of {len(groups)} rows; "
            f"{int((natural == wrong).sum())} are right for groups of {group_size}"
        )
    return order.to(torch.int32)


def sort_rows(qweight: torch.Tensor, order: torch.Tensor, bits: int) -> None:
    """Put the rows of a packed weight in ``order``, in place.

    Args:
        qweight: int32 ``[rows * bits / 32, columns]``, lowest bits first, as GPTQ stores it.
        order: integers ``[rows]``: which row goes to each place.
        bits: 4 or 8.
    """
    order = order.to(qweight.device, torch.int64)
    for part in qweight.split(max(1, _CHUNK_VALUES // len(order)), dim=1):
        part.copy_(pack_words(unpack_words(part, bits).index_select(0, order), bits))


def permute_halves(tensor: torch.Tensor, order: torch.Tensor) -> None:
    """Put the columns of each half of ``tensor`` ``[any, 2 * len(order)]`` in ``order``, in place.

    The halves are those of ``gate_up_proj``: silu(gate) * up then comes out in ``order``.
    """
    order = order.to(tensor.device, torch.int64)
    both = torch.cat([order, order + len(order)])
    tensor.copy_(tensor.index_select(1, both))
