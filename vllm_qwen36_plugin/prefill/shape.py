"""What a route's speed depends on: the linear's shape and how its weight is stored."""

from __future__ import annotations

import re
from dataclasses import dataclass

_KEY = re.compile(r"(\w+) (\d+)x(\d+) w(\d) g(-?\d+) (\w+)")


@dataclass(frozen=True, slots=True, order=True)
class Shape:
    """``y = x @ W``, with W ``[k, n]`` in ``bits`` bits.

    Attributes:
        layout: the stock kernel's, ``"marlin"`` or ``"machete"``.
        group_size: values along k that share a scale; -1 for all of them.
        dtype: of activations and scales, ``"bfloat16"`` or ``"float16"``.
    """

    layout: str
    k: int
    n: int
    bits: int
    group_size: int
    dtype: str

    @property
    def key(self) -> str:
        """The shape's name in compiled graphs, profiles and messages."""
        return f"{self.layout} {self.k}x{self.n} w{self.bits} g{self.group_size} {self.dtype}"

    @classmethod
    def parse(cls, key: str) -> Shape:
        """Read a :attr:`key` back.

        Raises:
            ValueError: ``key`` names no shape.
        """
        match = _KEY.fullmatch(key)
        if match is None:
            raise ValueError(
                f"{key!r} names no shape; one is {cls('marlin', 5120, 34816, 4, 128, 'bfloat16').key!r}"
            )
        layout, k, n, bits, group, dtype = match.groups()
        return cls(layout, int(k), int(n), int(bits), int(group), dtype)

    @property
    def expandable(self) -> bool:
        """Whether the expansion kernel takes it: W consists of whole tiles, each group of whole tiles along k."""
        step = 64 if self.layout == "machete" else 16
        group = self.k if self.group_size == -1 else self.group_size
        tile = 128 if self.layout == "machete" else 64
        return self.n % tile == 0 and self.k % step == 0 and group % step == 0 and self.k % group == 0
