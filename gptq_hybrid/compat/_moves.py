"""A quantized layer's weights from the GPU to main memory that is pinned, where the next copy of them starts.

gptqmodel 7.6.0 moves a layer by ``Module.to``: 0.76 GB at the 27B into memory that the driver has to stage and the
system to map page by page, while nothing else goes on.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import wraps
from typing import TYPE_CHECKING, Any

from ._gptqmodel import moved
from ._pinned import pinned

if TYPE_CHECKING:
    import torch


def to_pinned(tensor: torch.Tensor) -> torch.Tensor:
    """A contiguous copy in pinned memory, of a tensor on a GPU, without waiting for it; others as they are."""
    if not tensor.is_cuda:
        return tensor
    if not tensor.nbytes:
        return tensor.cpu()
    host = pinned(tensor.nbytes).view(tensor.dtype).view(tensor.shape)
    return host.copy_(tensor, non_blocking=True)


@contextmanager
def pinned_layers() -> Iterator[None]:
    """Have layers that are done leave a GPU into pinned memory.

    Raises:
        IncompatibleError: ``BaseQModel.post_quantize`` is gone.
    """
    import torch
    from gptqmodel.models.base import BaseQModel

    original: Callable[..., Any] | None = getattr(BaseQModel, "post_quantize", None)
    if original is None:
        raise moved("BaseQModel.post_quantize is expected")

    @wraps(original)
    def post_quantize(self: Any, module: Any) -> Any:
        devices = {p.device for p in module.parameters() if p.is_cuda}
        if devices:
            module._apply(to_pinned)
        for device in devices:
            torch.cuda.synchronize(device)
        # Whatever else it does, and has yet to move.
        return original(self, module)

    BaseQModel.post_quantize = post_quantize
    try:
        yield
    finally:
        BaseQModel.post_quantize = original
