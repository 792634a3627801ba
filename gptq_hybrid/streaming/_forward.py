"""Batches through the layers, one layer after the other."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor

import torch
from torch import nn

from ._batches import Batch
from ._stack import TextStack

States = list[torch.Tensor]


def read_layers(
    stack: TextStack, first: int, last: int
) -> Iterator[tuple[int, nn.Module, Mapping[str, torch.Tensor]]]:
    """Layers ``first … last - 1``: number, the module ready to run, and its dense tensors on the CPU.

    Reading and unpacking a layer of the 27B takes about as long as running it, so the next one is read meanwhile.
    """
    with ThreadPoolExecutor(1, thread_name_prefix="next-layer") as reader:
        ahead = reader.submit(stack.layer_tensors, first) if first < last else None
        number = first
        while ahead is not None:
            tensors = ahead.result()
            ahead = reader.submit(stack.layer_tensors, number + 1) if number + 1 < last else None
            yield number, stack.layer(number, tensors), tensors
            number += 1


class LayerStream:
    """A forward pass over all ``batches`` that can be left after any layer and taken up again.

    ``states`` holds ``[documents, length, hidden]`` per batch in main memory, in the stack's dtype: the input of
    layer ``done``.
    """

    def __init__(
        self, stack: TextStack, batches: Sequence[Batch], *, states: States | None = None, done: int = 0
    ) -> None:
        self.stack = stack
        self.batches = list(batches)
        self.done = done
        self.states = states if states is not None else [stack.embed(batch.tokens).cpu() for batch in batches]

    def run(
        self, *, until: int | None = None, after_layer: Callable[[LayerStream], None] | None = None
    ) -> States:
        """Run layers ``done … until - 1`` (all that are left by default); returns ``states``.

        ``after_layer`` is called after each, with ``done`` advanced.
        """
        last = self.stack.depth if until is None else until
        for number, layer, _ in read_layers(self.stack, self.done, last):
            with torch.inference_mode():
                for place, state in enumerate(self.states):
                    self.states[place] = self.stack.run_layer(layer, state.to(self.stack.device)).cpu()
            self.done = number + 1
            if after_layer is not None:
                after_layer(self)
        return self.states

    def final(self) -> States:
        """The states behind the final norm: what ``lm_head`` and the draft head take. All layers must be done."""
        assert self.done == self.stack.depth, "layers are left to run"
        norm = self.stack.norm()
        with torch.inference_mode():
            return [norm(state.to(self.stack.device)).cpu() for state in self.states]
