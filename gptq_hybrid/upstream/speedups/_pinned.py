"""Main memory that a GPU copies to and from by itself."""

from __future__ import annotations

import logging
from functools import cache
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch

_log = logging.getLogger(__name__)


def pinned(size: int) -> torch.Tensor:
    """``size`` bytes, uint8; ordinary ones where the system gives no pinned ones, which is said once."""
    import torch

    try:
        return torch.empty(size, dtype=torch.uint8, pin_memory=True)
    except RuntimeError as error:
        _warn(str(error).partition("\n")[0])
        return torch.empty(size, dtype=torch.uint8)


def release() -> None:
    """Give back pinned memory that nothing uses; PyTorch itself keeps all that it ever had."""
    import torch

    empty = getattr(torch._C, "_host_emptyCache", None)
    if empty is not None and torch.cuda.is_available():
        empty()


@cache
def _warn(reason: str) -> None:
    _log.warning("no pinned memory, so copies to and from the GPU take longer: %s", reason)
