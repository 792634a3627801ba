"""The search of scales without waiting for the GPU, to the same bytes.

Changes: ``Quantizer.find_params``, for symmetric searches by channel; others go gptqmodel's own way.
Why: it waits half a dozen times a group: for whether any weight is negative, for how many rows a mask holds,
    for whether a number that never changes is below zero; with ``mse`` 80 times more. In the sweep each wait
    empties the queue of the GPU, 136 times in the 27B's ``down_proj``. Here masks choose between values instead
    of places.
Versions: 7.6.0. From 7.7.0 on gptqmodel does the same, and keeps ``maxq`` as a Python number; it is left alone
    there.
Checks: five attributes of ``Quantizer``.
May go: when 7.6.0 is no longer supported.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import wraps
from typing import TYPE_CHECKING, Any

from gptq_hybrid.upstream.versions import moved

if TYPE_CHECKING:
    import torch

_PARTS = ("_search_adjacent_zero_points", "requires_groupwise_processing", "configure", "quantize")


def search(quantizer: Any, weight: torch.Tensor, most: int) -> None:
    """Set ``quantizer``'s scale and zero, ``[channels, 1]``, for ``weight``.

    Args:
        quantizer: gptqmodel's, symmetric and per channel.
        weight: ``[channels, columns]``, FP32.
        most: the quantizer's ``maxq``.
    """
    import torch

    zeros = torch.zeros(weight.shape[0], device=weight.device)
    low = torch.minimum(weight.min(1)[0], zeros)
    high = torch.maximum(torch.abs(low), torch.maximum(weight.max(1)[0], zeros))
    low = torch.where(low < 0, -high, low)
    empty = (low == 0) & (high == 0)
    low, high = torch.where(empty, -1.0, low), torch.where(empty, 1.0, high)
    # Divided by a tensor: dividing by a number, PyTorch would multiply by its reciprocal.
    scale = (high - low) / quantizer.maxq
    zero = torch.full_like(scale, (most + 1) / 2)
    power = float(getattr(quantizer.qcfg, "mse", 0.0) or 0.0)
    if power > 0.0:
        best = torch.full([weight.shape[0]], float("inf"), device=weight.device)
        middle = zero.unsqueeze(1)
        for i in range(int(quantizer.maxshrink * quantizer.grid)):
            share = 1 - i / quantizer.grid
            trial = (share * high - share * low) / quantizer.maxq
            column = trial.unsqueeze(1)
            delta = column * (torch.clamp(torch.round(weight / column) + middle, 0, most) - middle)
            delta -= weight
            error = torch.sum(delta.abs_().pow_(power), 1)
            better = error < best
            best = torch.where(better, error, best)
            scale = torch.where(better, trial, scale)
    quantizer.scale, quantizer.zero = scale.reshape(-1, 1), zero.reshape(-1, 1)


@contextmanager
def swift_search() -> Iterator[None]:
    """Have symmetric, per-channel searches of a weight's scales not wait for the GPU.

    Raises:
        IncompatibleError: gptqmodel's ``Quantizer`` is not the one this was written for.
    """
    from gptqmodel.quantization.quantizer import Quantizer

    if "_maxq_value" in Quantizer.__init__.__code__.co_names:
        yield
        return
    original: Callable[..., None] | None = getattr(Quantizer, "find_params", None)
    if original is None or not all(hasattr(Quantizer, name) for name in _PARTS):
        raise moved(f"Quantizer is expected to have find_params, {', '.join(_PARTS)}")

    @wraps(original)
    def find_params(self: Any, x: torch.Tensor, weight: bool = False) -> None:
        usual = type(self) is Quantizer and weight and self.perchannel and self.qcfg.sym and x.ndim == 2
        if not usual:
            original(self, x, weight)
            return
        self.maxq = self.maxq.to(x.device)
        # `configure` sets another tensor, and a deep copy takes both along.
        noted = self.__dict__.get("_qwen36_maxq")
        if noted is None or noted[0] is not self.maxq:
            noted = self.__dict__["_qwen36_maxq"] = (self.maxq, int(self.maxq.item()))
        if noted[1] < 0:
            original(self, x, weight)
            return
        search(self, x, noted[1])

    Quantizer.find_params = find_params
    try:
        yield
    finally:
        Quantizer.find_params = original
