"""Which layers keep activations of 16 bits: those whose inputs int8 would round too coarsely.

int8 with a scale for each 128 values loses what is small beside a massive activation in its group. How much of a
layer's result that is depends on the model and the layer. So it is measured where it happens: the first prompts are
computed with 16 bits, and some of their rows with 8 as well. Both results are compared on the GPU, and nothing
waits for the answer. A layer takes 8 bits once it is known to be under the limit.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch

# Root mean square of the error over that of the result, by row, averaged in squares. On the trained mini model int8
# in groups of 128 leaves 0.005 to 0.016, and 0.014 to 0.053 with a channel of each group ten times larger.
LIMIT = 0.02
# Rows of a prompt that are compared, and passes of a layer that are.
ROWS = 128
PASSES = 4


@dataclass(slots=True)
class _Layer:
    """One layer that is watched.

    Attributes:
        name: in the model.
        sums: float32 ``[2]`` on the GPU: squared errors of rows as shares, and rows.
        passes: compared so far.
        read: the sums on the host, once they are on their way.
        arrived: recorded behind their copy; None on a CPU.
        error: what :data:`LIMIT` is held against; None until it is known.
    """

    name: str
    sums: torch.Tensor | None = None
    passes: int = 0
    read: torch.Tensor | None = None
    arrived: Any = None
    error: float | None = None


@dataclass(slots=True)
class Guard:
    """Layers by the address of their packed words, which does not change once a model is loaded.

    Attributes:
        settled: called once, when every layer is decided.
    """

    settled: Callable[[], None] = lambda: None
    _layers: dict[int, _Layer] = field(default_factory=dict)
    _open: set[int] = field(default_factory=set)
    _kept: set[int] = field(default_factory=set)

    def watch(self, words: torch.Tensor, name: str) -> None:
        """Begin to watch a layer; until it is decided it keeps 16 bits."""
        address = words.data_ptr()
        self._layers[address] = _Layer(name or f"layer {len(self._layers) + 1}")
        self._kept.discard(address)
        self._open.add(address)

    def keeps(self, words: torch.Tensor) -> bool:
        """Whether a layer was found to be over the limit."""
        return bool(self._kept) and words.data_ptr() in self._kept

    def watches(self, words: torch.Tensor) -> bool:
        """Whether a layer is not decided yet. Never while a CUDA graph is captured: it asks for an event."""
        if not self._open:
            return False
        address = words.data_ptr()
        if address not in self._open:
            return False
        layer = self._layers[address]
        if layer.read is not None and (layer.arrived is None or layer.arrived.query()):
            self._decide(address, layer)
            return False
        return True

    def saw(
        self,
        words: torch.Tensor,
        x: torch.Tensor,
        result: torch.Tensor,
        eight_bit: Callable[[torch.Tensor], torch.Tensor],
    ) -> None:
        """Compare some rows of a pass.

        Args:
            x, result: the layer's input ``[m, k]`` and what 16 bits make of it ``[m, n]``; rows of prompts alone.
            eight_bit: computes the same with 8 bits.
        """
        layer = self._layers[words.data_ptr()]
        if layer.read is not None or not len(x):
            return
        # The first row too: it is where a prompt's massive activations are.
        step = -(-len(x) // ROWS)
        expected = result[::step].float()
        error = (eight_bit(x[::step].contiguous()).float() - expected).square().sum(dim=1)
        shares = error / expected.square().sum(dim=1)
        counts = shares.isfinite()
        seen = torch.stack([shares.where(counts, 0.0).sum(), counts.sum().float()])
        layer.sums = seen if layer.sums is None else layer.sums + seen
        layer.passes += 1
        if layer.passes == PASSES:
            self._fetch(layer, layer.sums)

    def errors(self) -> dict[str, float | None]:
        """Give each layer's error; None where it is not decided."""
        return {layer.name: layer.error for layer in self._layers.values()}

    def kept(self) -> list[str]:
        """Name the layers that keep 16 bits."""
        return [self._layers[address].name for address in self._layers if address in self._kept]

    def _fetch(self, layer: _Layer, sums: torch.Tensor) -> None:
        if not sums.is_cuda:
            layer.read = sums
            return
        layer.read = torch.empty(2, pin_memory=True)
        layer.read.copy_(sums, non_blocking=True)
        layer.arrived = torch.cuda.Event()
        layer.arrived.record()

    def _decide(self, address: int, layer: _Layer) -> None:
        assert layer.read is not None
        total, rows = layer.read.tolist()
        layer.sums = layer.read = layer.arrived = None
        if not rows:
            # Of no row there was a number to compare with: see more of them.
            layer.passes = 0
            return
        layer.error = (total / rows) ** 0.5
        self._open.discard(address)
        if not layer.error <= LIMIT:
            self._kept.add(address)
        if not self._open:
            self.settled()
