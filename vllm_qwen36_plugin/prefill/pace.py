"""The host's pace: from how many tokens on a pass that is launched kernel by kernel may leave the stock kernel.

A pass takes as long as its kernels or as the host takes to launch them, whichever is longer. A route has the GPU do
less and the host more, so where the host sets the pace it costs time: at 512 tokens `exact` took 1.12 of Marlin's
time to the first token (bench/prefill, one H200, vLLM 0.26.0). CUDA graphs have no such cost.

So the host is timed while it serves, from one call of a layer's linear to that of the next layer. A route is
taken from the number of tokens on at which the stock kernels alone would keep the GPU busy longer than the host
needs with the route. Until the pace is known that is :data:`UNKNOWN`.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Protocol

from .shape import Shape

# Tokens from which any host measured so far is ahead: Marlin's linears of a layer then take 4.7 ms on an H200, and
# the slowest host took 2.5 ms to launch a layer (bench/prefill).
UNKNOWN = 2048
# Layers in a row whose time is averaged: a multiple of the 4 after which the kinds of layers repeat. The least such
# average counts, as others have a pass's end in them, a compilation, or a full queue of launches.
_WINDOW = 16
_FEW = 128
# Calls to watch; then the pace is settled.
_CALLS = 4096
# Windows after which a pace is believed: in the first passes kernels are still compiled and tuned.
_WINDOWS = 8
# As in measure.py: so much faster a route must be.
_MARGIN = 0.03


class Timed(Protocol):
    """What is known of one shape: how often a layer has it, and microseconds by way and number of tokens."""

    @property
    def shape(self) -> Shape:
        """Of the linear."""

    @property
    def layers(self) -> int:
        """Linears of this shape in the model."""


@dataclass(slots=True)
class Pace:
    """Watches the calls of one model.

    Attributes:
        eager_from: tokens from which a pass outside CUDA graphs may leave the stock kernel.
        cut_from: the same where calls are cut in two, which takes the host a way's whole call more.
        layer_us: microseconds that the host takes for a layer; None until it is known.
        watching: whether calls are still to be given to :meth:`saw`.
    """

    eager_from: int = UNKNOWN
    cut_from: int = UNKNOWN
    layer_us: float | None = None
    watching: bool = False
    _watched: str = ""
    _stock_us: dict[int, float] = field(default_factory=dict)
    _extra_us: float = 0.0
    _whole_us: float = 0.0
    _last: float = 0.0
    _times: list[float] = field(default_factory=list)
    _calls: int = 0
    _windows: int = 0
    _settled: Callable[[], None] = lambda: None

    def watch(
        self,
        linears: Iterable[Timed],
        times: Mapping[Shape, Mapping[str, Mapping[int, float]]],
        host_us: Mapping[Shape, Mapping[str, float]],
        settled: Callable[[], None] = lambda: None,
    ) -> None:
        """Begin to watch a model whose linears were measured; without times the pace stays unknown.

        Args:
            linears: one a shape.
            times: GPU microseconds by shape, way and number of tokens.
            host_us: microseconds that the host takes for a call, by shape and way.
            settled: called once, when the pace is believed.
        """
        linears = list(linears)
        if not linears:
            return
        most = max(linears, key=lambda linear: (linear.layers, linear.shape.k * linear.shape.n))
        # The linears of an MTP head are in other bits, and no part of a prefill's layers.
        model = [linear for linear in linears if linear.shape.bits == most.shape.bits]
        if not all(
            times.get(linear.shape, {}).get("stock") and host_us.get(linear.shape) for linear in model
        ):
            return
        counts = set.intersection(*(set(times[linear.shape]["stock"]) for linear in model))
        self._stock_us = {
            tokens: sum(times[linear.shape]["stock"][tokens] * linear.layers for linear in model)
            / most.layers
            for tokens in sorted(counts)
        }
        self._extra_us = sum(_extra(host_us[linear.shape]) * linear.layers for linear in model) / most.layers
        self._whole_us = (
            sum(max(host_us[linear.shape].values()) * linear.layers for linear in model) / most.layers
        )
        self._watched, self._settled, self.watching = most.shape.key, settled, bool(self._stock_us)

    def saw(
        self,
        key: str,
        tokens: int,
        serves: Callable[[], bool],
        now: Callable[[], float] = time.perf_counter,
    ) -> None:
        """Take note of a call; ``serves`` says if it belongs to a pass with requests, launched kernel by kernel."""
        if key != self._watched:
            return
        self._calls += 1
        if self._calls >= _CALLS:
            self.watching = False
        # With fewer tokens other kernels of a layer are launched: those of decoding.
        if tokens < _FEW or not serves():
            self._times.clear()
            self._last = 0.0
            return
        moment = now()
        if self._last:
            self._times.append(moment - self._last)
        self._last = moment
        if len(self._times) == _WINDOW:
            self._learn(sum(self._times) / _WINDOW * 1e6)
            self._times.clear()

    def _learn(self, mean_us: float) -> None:
        self._windows += 1
        self.layer_us = min(mean_us, self.layer_us or mean_us)
        start, cut = (
            busy_from(self._stock_us, (self.layer_us + extra) / (1 - _MARGIN))
            for extra in (self._extra_us, self._whole_us)
        )
        believed = self._windows >= _WINDOWS
        self.eager_from = start if believed else min(start, UNKNOWN)
        self.cut_from = cut if believed else min(cut, UNKNOWN)
        if self._windows == _WINDOWS:
            self._settled()


def busy_from(stock_us: Mapping[int, float], host_us: float) -> int:
    """Find the number of tokens from which ``stock_us`` is ``host_us`` and more, between two measured ones in line.

    Below the least measured number nothing is known, beyond the greatest time grows in proportion.
    """
    counts = sorted(stock_us)
    before = None
    for tokens in counts:
        if stock_us[tokens] >= host_us:
            if before is None:
                return tokens
            rise = (stock_us[tokens] - stock_us[before]) / (tokens - before)
            return before + int((host_us - stock_us[before]) / rise) + 1
        before = tokens
    most = counts[-1]
    return int(most * host_us / stock_us[most]) + 1


def _extra(host_us: Mapping[str, float]) -> float:
    """What the slowest way costs the host beyond the stock kernel."""
    return max(max(host_us.values()) - host_us["stock"], 0.0)
