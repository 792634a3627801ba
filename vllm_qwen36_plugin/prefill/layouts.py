"""How vLLM's kernels lay out a 4- or 8-bit weight in memory.

The place of a value is a number: the int32 word it is in, and its lane in that word. In these layouts every bit of
that number stands for a step in k or in n, so a layout is the list of those steps. They were read off
``gptq_marlin_repack`` and ``machete_prepack_B`` of vLLM 0.26.0 on an H100, by packing the bits of the index itself.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

Step = tuple[int, int]


def _k(*steps: int) -> tuple[Step, ...]:
    return tuple((step, 0) for step in steps)


def _n(*steps: int) -> tuple[Step, ...]:
    return tuple((0, step) for step in steps)


@dataclass(frozen=True, slots=True)
class Layout:
    """One kernel's order of the values of W ``[k, n]``. Tiles follow each other along n first, then along k.

    Attributes:
        lanes: the step ``(k, n)`` that each bit of the lane stands for, lowest bit first.
        words: the same for the bits of the word's number within a tile.
    """

    name: str
    bits: int
    lanes: tuple[Step, ...]
    words: tuple[Step, ...]

    @property
    def tile(self) -> tuple[int, int]:
        """Size of a tile along k and n."""
        steps = self.lanes + self.words
        return 1 << sum(k > 0 for k, _ in steps), 1 << sum(n > 0 for _, n in steps)

    def places(self, k: int, n: int) -> torch.Tensor:
        """Compute the place of each value of W: int64 ``[k, n]``, word times lanes plus lane.

        Raises:
            ValueError: W is not made of whole tiles.
        """
        tile_k, tile_n = self.tile
        if k % tile_k or n % tile_n:
            raise ValueError(f"{k} × {n} is not made of {self.name} tiles of {tile_k} × {tile_n}")
        ks, ns = torch.arange(k)[:, None], torch.arange(n)[None, :]
        inner = torch.zeros(1, 1, dtype=torch.int64)
        for bit, (step_k, step_n) in enumerate(self.lanes + self.words):
            inner = inner + (((ks // step_k if step_k else ns // step_n) & 1) << bit)
        tiles = (ks // tile_k) * (n // tile_n) + ns // tile_n
        return tiles * (tile_k * tile_n) + inner

    def codes(self, words: torch.Tensor, k: int, n: int) -> torch.Tensor:
        """Unpack int32 ``words`` of any shape into the codes of W: int64 ``[k, n]``, not negative."""
        shifts = torch.arange(0, 32, self.bits)
        lanes = (words.reshape(-1, 1).long() >> shifts) & ((1 << self.bits) - 1)
        return lanes.reshape(-1)[self.places(k, n)]

    def words_of(self, codes: torch.Tensor) -> torch.Tensor:
        """Pack the codes of W, ``[k, n]``, into int32 words, flat: the reverse of :meth:`codes`."""
        k, n = codes.shape
        lanes = torch.empty(k * n, dtype=torch.int64)
        lanes[self.places(k, n).reshape(-1)] = codes.reshape(-1).long()
        shifted = lanes.reshape(-1, 32 // self.bits) << torch.arange(0, 32, self.bits)
        words = shifted.sum(dim=1)
        return torch.where(words >= 1 << 31, words - (1 << 32), words).to(torch.int32)


# Lanes of both 4-bit layouts: the half-word that holds k + 1, and the nibbles that hold k + 8 and n + 8.
MARLIN_4 = Layout("marlin", 4, (*_k(8), *_n(8), *_k(1)), (*_n(16, 32), *_k(2, 4), *_n(1, 2, 4)))
MARLIN_8 = Layout("marlin", 8, _k(8, 1), (*_n(8, 16, 32), *_k(2, 4), *_n(1, 2, 4)))
MACHETE_4 = Layout("machete", 4, (*_n(8), *_k(8, 1)), (*_k(16, 32, 2, 4), *_n(1, 2, 4)))
MACHETE_8 = Layout("machete", 8, (*_k(1), *_n(8)), (*_k(8, 16, 32, 2, 4), *_n(1, 2, 4)))

# Humming's for 4-bit codes and activations of 8 bits (eight_bit_words.py): no stock kernel here holds a weight so.
HUMMING_FLAT_4 = Layout("humming flat", 4, _k(1, 2, 4), (*_k(8, 16), *_n(1, 2, 4, 8, 16, 32)))
HUMMING_4 = Layout("humming", 4, _k(16, 1, 2), (*_n(8, 16), *_k(4, 8), *_n(1, 2, 4, 32)))

LAYOUTS = {(layout.name, layout.bits): layout for layout in (MARLIN_4, MARLIN_8, MACHETE_4, MACHETE_8)}


def marlin_scale_places(n: int, *, grouped: bool) -> torch.Tensor:
    """Compute where Marlin keeps the scale of each column: int64 ``[n]``. Machete keeps them in order.

    Grouped scales lie in blocks of 64 columns, 8 × 8 transposed. A single group lies in blocks of 32, pairs of
    columns 8 apart side by side (``marlin_permute_scales``, vLLM 0.19.1 to 0.33.0).
    """
    c = torch.arange(n)
    if grouped:
        return c // 64 * 64 + c % 8 * 8 + c % 64 // 8
    return c // 32 * 32 + c % 8 // 2 * 8 + c % 32 // 8 * 2 + c % 2
