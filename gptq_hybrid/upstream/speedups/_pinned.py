"""Pinned main memory, which a GPU copies to and from by itself."""

from __future__ import annotations

import logging
from functools import cache
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch

_log = logging.getLogger(__name__)


def pinned(size: int) -> torch.Tensor:
    """Return ``size`` pinned bytes, uint8; ordinary ones, with one warning, where the system pins none."""
    import torch

    try:
        return torch.empty(size, dtype=torch.uint8, pin_memory=True)
    except RuntimeError as error:
        _warn(str(error).partition("\n")[0])
        return torch.empty(size, dtype=torch.uint8)


def release() -> None:
    """Give pinned memory that nothing uses back to the system; PyTorch by itself keeps it."""
    import torch

    empty = getattr(torch._C, "_host_emptyCache", None)
    if empty is not None and torch.cuda.is_available():
        empty()


@cache
def _warn(reason: str) -> None:
    _log.warning("no pinned memory, so copies to and from the GPU take longer: %s", reason)
