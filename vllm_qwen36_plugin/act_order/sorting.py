"""The arithmetic of act order: rows sorted by group, and the permutation that the input then needs.

GPTQ with ``desc_act`` numbers a row's group by its place in order of importance: ``g_idx[order[i]]`` is
``i // group_size``. So each group has ``group_size`` rows (the last one may have fewer), anywhere in the matrix.
Sorting by ``g_idx`` puts them side by side: ``y = x @ W`` is ``x[order] @ W[order]``.
"""

from __future__ import annotations

import torch

# Values of the sort in flight at a time: 64 MiB of int32, whatever the layer's width.
_CHUNK_VALUES = 1 << 24


def natural_order(rows: int, group_size: int) -> torch.Tensor:
    """``g_idx`` of rows in natural order, int32 ``[rows]``; one group for -1."""
    size = rows if group_size == -1 else group_size
    return (torch.arange(rows) // size).to(torch.int32)


def row_order(g_idx: torch.Tensor, group_size: int) -> torch.Tensor | None:
    """Rows in order of their group, int32 ``[rows]``; None where they lie in order already.

    Rows of a group keep their order (a stable sort), so equal ``g_idx`` give equal orders.

    Args:
        g_idx: integers ``[rows]``, the group of each row.
        group_size: rows a group; -1 for one group.

    Raises:
        ValueError: a group has too many or too few rows, or there are too many groups.
    """
    groups = g_idx.to("cpu", torch.int64)
    expected = natural_order(len(groups), group_size).to(torch.int64)
    if torch.equal(groups, expected):
        return None
    found, order = torch.sort(groups, stable=True)
    if not torch.equal(found, expected):
        wrong = int(found[found != expected][0])
        count = int((groups == wrong).sum())
        raise ValueError(
            f"group {wrong} has {count} of {len(groups)} rows; "
            f"{int((expected == wrong).sum())} are right for groups of {group_size}"
        )
    return order.to(torch.int32)


def sort_rows(qweight: torch.Tensor, order: torch.Tensor, bits: int) -> None:
    """Put the rows of a packed weight in ``order``, in place.

    Args:
        qweight: int32 ``[rows * bits / 32, columns]``, lowest bits first, as GPTQ stores it.
        order: integers ``[rows]``: which row goes to each place.
        bits: 4 or 8.
    """
    words, columns = qweight.shape
    lanes = 32 // bits
    order = order.to(qweight.device, torch.int64)
    shifts = torch.arange(0, 32, bits, dtype=torch.int32, device=qweight.device)
    step = max(1, _CHUNK_VALUES // (words * lanes))
    for start in range(0, columns, step):
        part = qweight[:, start : start + step]
        values = (part[:, None, :] >> shifts[None, :, None]) & ((1 << bits) - 1)
        values = values.reshape(words * lanes, -1).index_select(0, order).reshape(words, lanes, -1)
        packed = values[:, 0].clone()
        for lane in range(1, lanes):
            packed |= values[:, lane] << (lane * bits)
        part.copy_(packed)


def permute_halves(tensor: torch.Tensor, order: torch.Tensor) -> None:
    """Put the columns of each half of ``tensor`` ``[any, 2 * len(order)]`` in ``order``, in place.

    The halves are those of ``gate_up_proj``: silu(gate) * up then comes out in ``order``.
    """
    half = len(order)
    order = order.to(tensor.device, torch.int64)
    both = torch.cat([order, order + half])
    tensor.copy_(tensor.index_select(1, both))
