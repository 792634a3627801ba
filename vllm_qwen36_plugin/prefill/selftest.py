"""Start-up's self-test: each route against the weights as loaded, and the replay against its stock kernel."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Literal

import torch

from gptq_hybrid.packing import dequantize_symmetric

from . import replay, scratch
from .activations import reference_groups, values_of
from .dispatch import Linear
from .profile import GemmName, Route
from .routes import unpack

# Numbers of tokens that neither tiles nor vectors of 8 or 16 divide.
TOKENS = (1, 129, 517)
# Tokens with outliers: in one channel in 128 all values are a hundred times larger, or one value of each token is
# three thousand, as models of this size have for the first token of a prompt.
_WITH_OUTLIERS = 129
_COLUMNS = 2048
Tested = Route | Literal["humming"]
# Share of the result's root mean square. BF16 rounds the result to 2**-9 of each value. e4m3 rounds both operands
# to 2**-4, which leaves 3 to 4 % over thousands of products (measured: bench/prefill). `a8` is held against the
# products of activations that were rounded as it rounds them.
_TOLERANCE: dict[Tested, float] = {"exact": 0.01, "humming": 0.01, "fp8": 0.08, "a8": 0.01}


@dataclass(frozen=True, slots=True)
class Original:
    """A layer's packed weight as it was loaded, copied: int32 ``[k * bits / 32, n]``, scales ``[groups, n]``."""

    words: torch.Tensor
    scales: torch.Tensor

    @classmethod
    def copy_of(cls, words: torch.Tensor, scales: torch.Tensor) -> Original:
        """Copy them: a stock kernel repacks in place."""
        return cls(words.clone(), scales.clone())

    def dense(self, first: int, columns: int, bits: int) -> torch.Tensor:
        """Dequantize some columns of W: ``[columns, k]``."""
        part = slice(first, first + columns)
        return dequantize_symmetric(self.words[:, part].contiguous(), self.scales[:, part].contiguous(), bits)


def problem_with(
    route: Tested,
    linear: Linear,
    original: Original,
    tensors: Sequence[torch.Tensor],
    fp8_scales: torch.Tensor | None,
    gemm: GemmName | None = None,
) -> str | None:
    """Say what is wrong with a route for this layer, with ``fp8`` by one of its GEMMs; None if nothing is."""
    weight = linear.weight(tensors, fp8_scales)
    shape = linear.shape
    dtype = getattr(torch, shape.dtype)
    if route == "exact":
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
    for name, x in _inputs(shape.k, dtype, weight.words.device, generator):
        expected = _as_multiplied(x, route, linear) @ reference.t()
        result = linear.run(route, x, weight, gemm)[:, -columns:].float()
        # By token: an outlier in one would hide what is wrong with the others.
        errors = (result - expected).square().mean(dim=1).sqrt()
        sizes = expected.square().mean(dim=1).sqrt()
        # If the checkpoint's own result is not finite, there is nothing to compare with.
        wrong = sizes.isfinite() & ~(errors <= _TOLERANCE[route] * sizes)
        if wrong.any():
            at = int(wrong.nonzero()[0])
            error, size = float(errors[at]), float(sizes[at])
            return f"{name} are off by {error:.3g}, and their root mean square is {size:.3g}"
    return None


def _as_multiplied(x: torch.Tensor, route: Tested, linear: Linear) -> torch.Tensor:
    """Make x float32, rounded to 8 bits if a route does that and rounds nothing else."""
    if route != "a8":
        return x.float()
    assert linear.eight_bit is not None
    return values_of(*reference_groups(x, linear.eight_bit.kind.stored))


def failing(
    linear: Linear, original: Original, tensors: Sequence[torch.Tensor], fp8_scales: torch.Tensor | None
) -> Iterator[tuple[Tested, str]]:
    """Test the ways that calls of a shape take with another of its layers; give those that fail, and why."""
    ways: list[Tested] = [route for route in linear.routes if linear.takes(route)]
    if linear.starts.humming:
        ways.append("humming")
    for way in ways:
        gemm = linear.starts.fp8_gemm if way == "fp8" else None
        try:
            problem = problem_with(way, linear, original, tensors, fp8_scales, gemm)
        except Exception as error:  # noqa: BLE001 - the stock kernel works in any case
            problem = repr(error)
        if problem is not None:
            yield way, problem


def _inputs(
    k: int, dtype: torch.dtype, device: torch.device, generator: torch.Generator
) -> Iterator[tuple[str, torch.Tensor]]:
    """Make what a route is tested with, and what to call it: of each number of tokens, then with outliers."""
    for tokens in TOKENS:
        yield f"{tokens} tokens", torch.randn(tokens, k, dtype=dtype, device=device, generator=generator)
    channels = torch.randn(_WITH_OUTLIERS, k, dtype=dtype, device=device, generator=generator)
    massive = channels.clone()
    channels[:, 5::128] *= 100
    yield f"{_WITH_OUTLIERS} tokens with large channels", channels
    massive[:, k // 3] = 3000
    yield f"{_WITH_OUTLIERS} tokens with a massive activation", massive


def record_replay(linear: Linear, tensors: Sequence[torch.Tensor]) -> replay.Template:
    """Record what the stock kernel does for a layer with these tensors.

    Raises:
        NotReplayable: it is more than one call of an op.
    """
    dtype, device = getattr(torch, linear.shape.dtype), tensors[linear.words].device
    inputs = [torch.zeros(tokens, linear.shape.k, dtype=dtype, device=device) for tokens in replay.TOKENS]
    return replay.record(partial(linear.by_vllm, tensors=tensors), linear.kernel, tensors, inputs)


def problem_with_replay(linear: Linear, again: replay.Replay, tensors: Sequence[torch.Tensor]) -> str | None:
    """Say how a replay differs from the stock kernel, for this layer or another; None if it does not."""
    # A second set of tensors, as another layer's: the replay may hold nothing of the layer it was recorded with.
    others = [tensor.clone() for tensor in tensors]
    others[linear.scales].neg_()
    others[linear.words].bitwise_not_()
    generator = torch.Generator(tensors[linear.words].device).manual_seed(0)
    dtype = getattr(torch, linear.shape.dtype)
    for tokens in TOKENS:
        x = torch.randn(
            tokens, linear.shape.k, dtype=dtype, device=tensors[linear.words].device, generator=generator
        )
        for layer_tensors in (tensors, others):
            replayed, expected = again(x, layer_tensors), linear.by_vllm(x, layer_tensors)
            if replayed.shape != expected.shape or _differs(replayed, expected).any():
                return f"{tokens} tokens are not what vLLM's Python makes of them"
    return None


def _differs(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    """Where two tensors of one 16-bit type differ, bit for bit; any two NaNs are equal."""
    # As integers: zero has a sign.
    differs = a.view(torch.int16) != b.view(torch.int16)
    return differs & ~(a.isnan() & b.isnan())
