"""Each path against the weights as they were loaded, before it may serve; and a stock kernel against its replay."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from math import isfinite

import torch

from gptq_hybrid.packing import dequantize_symmetric

from . import replay, scratch
from .dispatch import Linear
from .paths import unpack
from .profile import GemmName, PathName

# Neither tiles nor vectors of 8 or 16 divide these.
ROWS = (1, 129, 517)
_COLUMNS = 2048
# Of the result's root mean square. BF16 rounds the result to 2**-9 of each value; e4m3 rounds both operands
# to 2**-4, which over thousands of products leaves 3 to 4 % (measured: bench/prefill).
_TOLERANCE: dict[PathName, float] = {"exact": 0.01, "fp8": 0.08}


@dataclass(frozen=True, slots=True)
class Original:
    """A layer's packed weight as it was loaded: int32 ``[k * bits / 32, n]`` and scales ``[groups, n]``, copies."""

    words: torch.Tensor
    scales: torch.Tensor

    @classmethod
    def of(cls, words: torch.Tensor, scales: torch.Tensor) -> Original:
        return cls(words.clone(), scales.clone())

    def dense(self, first: int, columns: int, bits: int) -> torch.Tensor:
        """Those columns of W, transposed: ``[columns, k]``."""
        part = slice(first, first + columns)
        return dequantize_symmetric(self.words[:, part].contiguous(), self.scales[:, part].contiguous(), bits)


def problem_with(
    path: PathName,
    linear: Linear,
    original: Original,
    tensors: Sequence[torch.Tensor],
    fp8_scales: torch.Tensor | None,
    gemm: GemmName | None = None,
) -> str | None:
    """What is wrong with a path for this layer, ``fp8`` by one of its GEMMs; None if nothing is."""
    weight = linear.weight(tensors, fp8_scales)
    shape = linear.shape
    dtype = getattr(torch, shape.dtype)
    if path == "exact":
        for tile in scratch.tiles(weight.words.device, shape.k, shape.n, dtype):
            unpack(weight, tile.dense, tile.first, shape)
            for first in range(tile.first, tile.last, _COLUMNS):
                expected = original.dense(first, min(_COLUMNS, tile.last - first), shape.bits)
                part = tile.dense[first - tile.first :][: len(expected)]
                wrong = _differs(part, expected).any(dim=1)
                if wrong.any():
                    return f"column {first + int(wrong.nonzero()[0])} does not unpack to the checkpoint's numbers"
    generator = torch.Generator(weight.words.device).manual_seed(0)
    columns = min(_COLUMNS, shape.n)
    reference = original.dense(shape.n - columns, columns, shape.bits).float()
    for rows in ROWS:
        x = torch.randn(rows, shape.k, dtype=dtype, device=weight.words.device, generator=generator)
        expected = x.float() @ reference.t()
        found = linear.run(path, x, weight, gemm)[:, -columns:].float()
        error = float((found - expected).square().mean().sqrt())
        size = float(expected.square().mean().sqrt())
        # Where the checkpoint itself has no finite result, there is nothing to be off from.
        if isfinite(size) and not error <= _TOLERANCE[path] * size:
            return f"{rows} rows are off by {error:.3g}, and their root mean square is {size:.3g}"
    return None


def replay_of(linear: Linear, tensors: Sequence[torch.Tensor]) -> replay.Template:
    """What the stock kernel does for a layer with these tensors.

    Raises:
        NotReplayable: it is more than one call of an op.
    """
    dtype, device = getattr(torch, linear.shape.dtype), tensors[linear.words].device
    rows = [torch.zeros(count, linear.shape.k, dtype=dtype, device=device) for count in replay.ROWS]
    return replay.record(partial(linear.by_vllm, tensors=tensors), linear.kernel, tensors, rows)


def problem_with_replay(linear: Linear, again: replay.Replay, tensors: Sequence[torch.Tensor]) -> str | None:
    """How a replay differs from the stock kernel, for this layer or another of its shape; None if it does not."""
    # As another layer's: nothing may be left of the one that was looked at.
    others = [tensor.clone() for tensor in tensors]
    others[linear.scales].neg_()
    others[linear.words].bitwise_not_()
    generator = torch.Generator(tensors[linear.words].device).manual_seed(0)
    dtype = getattr(torch, linear.shape.dtype)
    for rows in ROWS:
        x = torch.randn(
            rows, linear.shape.k, dtype=dtype, device=tensors[linear.words].device, generator=generator
        )
        for given in (tensors, others):
            found, expected = again(x, given), linear.by_vllm(x, given)
            if found.shape != expected.shape or _differs(found, expected).any():
                return f"{rows} rows are not what vLLM's Python makes of them"
    return None


def _differs(found: torch.Tensor, expected: torch.Tensor) -> torch.Tensor:
    """Where two of one 16-bit type do. As integers: zero keeps its sign. A NaN is to stay one, whichever."""
    differs = found.view(torch.int16) != expected.view(torch.int16)
    return differs & ~(found.isnan() & expected.isnan())
