"""``g_idx``: which quantization group each input row belongs to."""

from __future__ import annotations

from typing import TYPE_CHECKING

from ._checkpoint import Checkpoint
from .headers import TensorInfo

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray


def read_g_idx(checkpoint: Checkpoint, info: TensorInfo) -> NDArray[np.int32]:
    """The values of one ``g_idx`` tensor, int32 ``[in_features]``."""
    import numpy as np

    values: NDArray[np.int32] = np.frombuffer(checkpoint.read_bytes(info), dtype="<i4")
    return values


def is_trivial(g_idx: NDArray[np.int32], group_size: int) -> bool:
    """Whether row ``i`` lies in group ``i // group_size`` (one group in all for -1)."""
    import numpy as np

    size = len(g_idx) if group_size == -1 else group_size
    return bool(np.array_equal(g_idx, np.arange(len(g_idx)) // size))
