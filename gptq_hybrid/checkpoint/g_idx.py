"""``g_idx``: which quantization group each input feature of a linear belongs to, int32 ``[in_features]``."""

from __future__ import annotations

import sys
from array import array
from functools import cache


@cache
def natural_bytes(features: int, group_size: int) -> bytes:
    """Return the bytes of a ``g_idx`` in natural order: feature ``i`` in group ``i // group_size``.

    int32, little-endian. A ``group_size`` of 0 or less means one group of all features.
    """
    size = features if group_size <= 0 else group_size
    values = array("i", (i // size for i in range(features)))
    if sys.byteorder == "big":
        values.byteswap()
    return values.tobytes()


def is_natural(g_idx: bytes, features: int, group_size: int) -> bool:
    """Whether the bytes of a whole ``g_idx`` are in natural order, so that loading needs none."""
    return g_idx == natural_bytes(features, group_size)
