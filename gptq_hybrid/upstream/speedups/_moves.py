"""Move a finished layer's weights from the GPU into pinned main memory, from where they are packed.

Changes: ``BaseQModel.post_quantize`` first copies the weights that are about to be packed.
Why: gptqmodel moves a layer by ``Module.to``: 0.76 GB at the 27B into memory that the driver has to stage and
    the system to map page by page, while nothing else goes on.
Versions: 7.6.0; it fits 7.7.0, and was not run there on a GPU.
Checks: the method exists.
May go: when gptqmodel moves layers so.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import wraps
from typing import TYPE_CHECKING, Any

from gptq_hybrid.upstream.versions import moved

from ._pinned import pinned

if TYPE_CHECKING:
    import torch

# Bytes; PyTorch rounds pinned memory up to a power of two, and small tensors gain nothing.
_LEAST = 1 << 22


class Departures:
    """Where finished layers were: ``device`` is the GPU of the last one, None before the first."""

    device: torch.device | None = None


def to_pinned(tensor: torch.Tensor) -> torch.Tensor:
    """Copy a tensor on a GPU into pinned memory, contiguous, without waiting for the copy."""
    host = pinned(tensor.nbytes).view(tensor.dtype).view(tensor.shape)
    return host.copy_(tensor, non_blocking=True)


def about_to_be_packed(model: Any, layer: Any) -> list[torch.nn.Linear]:
    """Return the linears of a layer on a GPU whose dense weight is soon gone.

    Other weights would stay pinned for the whole run.
    """
    import torch

    prefix = next((name for name, module in model.model.named_modules() if module is layer), None)
    if prefix is None:
        return []
    return [
        module
        for name, module in layer.named_modules()
        if isinstance(module, torch.nn.Linear)
        and module.weight.is_cuda
        and module.weight.nbytes >= _LEAST
        and model.quantize_config.dynamic_get(layer_name=f"{prefix}.{name}") is not False
    ]


@contextmanager
def pinned_layers() -> Iterator[Departures]:
    """Have finished layers leave a GPU into pinned memory.

    Yields:
        Which GPU the last one left.

    Raises:
        IncompatibleError: ``BaseQModel.post_quantize`` is gone.
    """
    import torch
    from gptqmodel.models.base import BaseQModel

    original: Callable[..., Any] | None = getattr(BaseQModel, "post_quantize", None)
    if original is None:
        raise moved("BaseQModel.post_quantize is expected")
    left = Departures()

    @wraps(original)
    def post_quantize(self: Any, module: Any) -> Any:
        for linear in about_to_be_packed(self, module):
            left.device = linear.weight.device
            linear.weight.data = to_pinned(linear.weight.data)
        if left.device is not None:
            torch.cuda.synchronize(left.device)
        # It moves all the rest.
        return original(self, module)

    BaseQModel.post_quantize = post_quantize
    try:
        yield left
    finally:
        BaseQModel.post_quantize = original
