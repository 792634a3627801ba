"""One buffer per GPU that every layer's dense weight is written to, some of its columns at a time.

It is allocated while the weights are loaded, so that vLLM counts it before it sizes the KV cache. It never moves,
because CUDA graphs hold its address.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple

import torch

# Tiles of the GEMMs behind are at most 256 columns wide.
_ALIGN = 256
_LEAST = 64
# An MTP layer is loaded later and may add one part in so many of the model's FP8 scales (at 27B one in 60).
_LATER = 16
_buffers: dict[torch.device, torch.Tensor] = {}
_tiles: dict[tuple[torch.device, int, int, torch.dtype], list[Tile]] = {}
_words: dict[tuple[torch.device, int, int], torch.Tensor] = {}


class Tile(NamedTuple):
    """Columns ``first`` to ``last`` of W and their place: ``dense`` ``[columns, k]``, and ``transposed`` of it."""

    first: int
    last: int
    dense: torch.Tensor
    transposed: torch.Tensor


def reserve(device: torch.device, size: int) -> None:
    """Grow the device's scratch buffer to at least ``size`` bytes. Call it before any graph is captured."""
    if reserved(device) < size:
        swap(device, torch.empty(size, dtype=torch.uint8, device=device))


def swap(device: torch.device, buffer: torch.Tensor) -> torch.Tensor | None:
    """Make ``buffer`` (uint8) the device's scratch buffer.

    Returns:
        The buffer it replaces. Graphs captured before go on using that one.
    """
    previous = _buffers.get(device)
    _buffers[device] = buffer
    _forget()
    return previous


def shrink(device: torch.device, size: int) -> None:
    """Give back all but ``size`` bytes of the device's buffer. Call it before any graph is captured."""
    if 0 < size < reserved(device):
        # First, so that there are never two.
        _buffers.pop(device)
        swap(device, torch.empty(size, dtype=torch.uint8, device=device))
    elif not size and _buffers.pop(device, None) is not None:
        _forget()


def devices() -> list[torch.device]:
    """List the devices that have a buffer."""
    return list(_buffers)


def release() -> None:
    """Free the buffers of all devices."""
    _buffers.clear()
    _forget()


def _forget() -> None:
    _tiles.clear()
    _words.clear()


def reserved(device: torch.device) -> int:
    """Give the size of the device's buffer in bytes; 0 without one."""
    buffer = _buffers.get(device)
    return 0 if buffer is None else buffer.numel()


def tiles(device: torch.device, k: int, n: int, dtype: torch.dtype) -> list[Tile]:
    """Cut W ``[k, n]`` into the parts that go through the buffer one after another, all at its start.

    Raises:
        KeyError: nothing was reserved.
        ValueError: not even 64 columns fit.
    """
    # Made once: a view takes 3 µs, and a pass through 64 layers goes through 512 tiles.
    parts = _tiles.get((device, k, n, dtype))
    if parts is None:
        buffer, parts = _buffers[device], []
        for first, columns in column_tiles(k, n, dtype.itemsize, buffer.numel()):
            dense = buffer[: columns * k * dtype.itemsize].view(dtype).view(columns, k)
            parts.append(Tile(first, first + columns, dense, dense.t()))
        _tiles[device, k, n, dtype] = parts
    return parts


def words(device: torch.device, k: int, n: int) -> torch.Tensor:
    """View the buffer's start as the words of a 4-bit W ``[k, n]``: int32 ``[k / 32, 4 * n]``.

    Raises:
        KeyError: nothing was reserved.
        ValueError: they do not fit.
    """
    view = _words.get((device, k, n))
    if view is None:
        buffer, size = _buffers[device], word_bytes(k, n)
        if size > buffer.numel():
            needed, there = -(-size // (1 << 20)), buffer.numel() >> 20
            raise ValueError(f"{k} x {n} in 4 bits needs {needed} MiB of scratch; there are {there}")
        view = _words[device, k, n] = buffer[:size].view(torch.int32).view(k // 32, 4 * n)
    return view


def word_bytes(k: int, n: int) -> int:
    """Compute the bytes of a 4-bit W ``[k, n]``."""
    return k * n // 2


def beside(scale_bytes: int, budget: int) -> int:
    """Compute the buffer's share of ``budget`` bytes when FP8 scales take ``scale_bytes``; at least half.

    At 27B it is 96 of 128 MiB. Parts in e4m3 are cut as they would be in 128, and the largest part takes 85.
    """
    return max(budget - scale_bytes - scale_bytes // _LATER, budget // 2)


def largest_tile(k: int, n: int, itemsizes: Iterable[int], size: int) -> int:
    """Compute the bytes of the largest part of W ``[k, n]`` that goes through a buffer of ``size`` bytes.

    The parts are the same in any buffer between the result and ``size`` bytes.

    Args:
        itemsizes: bytes of a value, for each type that W is written in.

    Returns:
        Bytes; 0 if not even 64 columns fit.
    """
    largest = 0
    for itemsize in itemsizes:
        if size >= _LEAST * k * itemsize:
            _, columns = column_tiles(k, n, itemsize, size)[0]
            largest = max(largest, columns * k * itemsize)
    return largest


def column_tiles(k: int, n: int, itemsize: int, size: int) -> list[tuple[int, int]]:
    """Cut n columns of ``k * itemsize`` bytes into parts ``(first, columns)`` that fit ``size`` bytes.

    Raises:
        ValueError: not even 64 columns fit.
    """
    most = size // (k * itemsize) // _LEAST * _LEAST
    if most < _LEAST:
        raise ValueError(
            f"{_LEAST} columns of {k} values need {_LEAST * k * itemsize:,} bytes; there are {size:,}"
        )
    if most >= n:
        return [(0, n)]
    align = _ALIGN if most >= _ALIGN else _LEAST
    parts = -(-n // (most // align * align))
    width = -(-n // parts // align) * align
    return [(first, min(width, n - first)) for first in range(0, n, width)]
