"""One buffer a GPU that every layer's dense weight is written to, a part of its columns at a time.

Allocated while the weights are loaded, so that vLLM counts it before it sizes the KV cache, and never moved: CUDA
graphs hold its address.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple

import torch

# Tiles of the GEMMs behind are at most 256 columns wide.
_ALIGN = 256
_LEAST = 64
# Of a model's FP8 scales, what an MTP layer may add, which is loaded later: one part in so many (at 27B in 60).
_LATER = 16
_buffers: dict[torch.device, torch.Tensor] = {}
_tiles: dict[tuple[torch.device, int, int, torch.dtype], list[Tile]] = {}


class Tile(NamedTuple):
    """Columns ``first`` to ``last`` of W, and where they are written: ``[columns, k]``, and the same transposed."""

    first: int
    last: int
    dense: torch.Tensor
    transposed: torch.Tensor


def reserve(device: torch.device, size: int) -> None:
    """Have ``size`` bytes on ``device``, in place of fewer. To be called before any graph is captured."""
    found = _buffers.get(device)
    if found is None or found.numel() < size:
        _buffers[device] = torch.empty(size, dtype=torch.uint8, device=device)
        _tiles.clear()


def release() -> None:
    """Forget all buffers."""
    _buffers.clear()
    _tiles.clear()


def reserved(device: torch.device) -> int:
    """Bytes there are."""
    found = _buffers.get(device)
    return 0 if found is None else found.numel()


def tiles(device: torch.device, k: int, n: int, dtype: torch.dtype) -> list[Tile]:
    """The parts of W ``[k, n]`` that are in the buffer one after another, all at its start.

    Raises:
        KeyError: nothing was reserved.
        ValueError: not even 64 columns fit.
    """
    # Made once: a view takes 3 µs, and a pass through 64 layers goes through 512 tiles.
    found = _tiles.get((device, k, n, dtype))
    if found is None:
        buffer, found = _buffers[device], []
        for first, columns in column_tiles(k, n, dtype.itemsize, buffer.numel()):
            dense = buffer[: columns * k * dtype.itemsize].view(dtype).view(columns, k)
            found.append(Tile(first, first + columns, dense, dense.t()))
        _tiles[device, k, n, dtype] = found
    return found


def beside(kept: int, given: int) -> int:
    """Bytes of ``given`` that are the buffer's where a model keeps ``kept`` bytes of FP8 scales; half at least.

    Of 128 MiB at 27B 96, where parts in e4m3 are what they would be in 128; the largest of any takes 85.
    """
    return max(given - kept - kept // _LATER, given // 2)


def largest_tile(k: int, n: int, itemsizes: Iterable[int], size: int) -> int:
    """Bytes of the largest part of W ``[k, n]`` that goes through ``size`` bytes, over values of these sizes.

    In a buffer of so many bytes, or of any number up to ``size``, the parts are the same. 0 where not even 64
    columns fit.
    """
    found = 0
    for itemsize in itemsizes:
        if size >= _LEAST * k * itemsize:
            _, columns = column_tiles(k, n, itemsize, size)[0]
            found = max(found, columns * k * itemsize)
    return found


def column_tiles(k: int, n: int, itemsize: int, size: int) -> list[tuple[int, int]]:
    """Parts ``(first, columns)`` of n columns of ``k * itemsize`` bytes that fit ``size`` bytes, of like width.

    Raises:
        ValueError: not even 64 columns fit.
    """
    most = size // (k * itemsize) // _LEAST * _LEAST
    if most < _LEAST:
        raise ValueError(
            f"{_LEAST} columns of {k} rows need {_LEAST * k * itemsize:,} bytes; there are {size:,}"
        )
    if most >= n:
        return [(0, n)]
    align = _ALIGN if most >= _ALIGN else _LEAST
    parts = -(-n // (most // align * align))
    width = -(-n // parts // align) * align
    return [(first, min(width, n - first)) for first in range(0, n, width)]
