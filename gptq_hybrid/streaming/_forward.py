"""Batches of documents, and a forward pass that takes them through one layer after the other."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import TypeVar

import torch
from torch import nn

from ._stack import TextStack

States = list[torch.Tensor]
T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Batch:
    """Documents of token ids, padded on the right.

    No attention mask is needed. Every mixer of the hybrid is causal, so padding on the right cannot reach into the
    document; what is computed at padded positions is thrown away.

    Attributes:
        tokens: int64 ``[documents, length]``, padded with 0.
        numbers: the place of each row's document in the sequence that was batched.
        lengths: tokens of each row's document.
    """

    tokens: torch.Tensor
    numbers: tuple[int, ...]
    lengths: tuple[int, ...]


def make_batches(documents: Sequence[Sequence[int]], batch_tokens: int) -> list[Batch]:
    """Group documents of similar length into batches of at most ``batch_tokens`` tokens, padding included.

    A document longer than that makes a batch of its own.
    """
    order = sorted(range(len(documents)), key=lambda number: (len(documents[number]), number))
    batches: list[Batch] = []
    group: list[int] = []
    for number in order:
        # Sorted by length: the newest is the longest, and the batch is padded to it.
        if group and len(documents[number]) * (len(group) + 1) > batch_tokens:
            batches.append(_pad(documents, group))
            group = []
        group.append(number)
    if group:
        batches.append(_pad(documents, group))
    return batches


def _pad(documents: Sequence[Sequence[int]], numbers: list[int]) -> Batch:
    lengths = tuple(len(documents[number]) for number in numbers)
    tokens = torch.zeros(len(numbers), max(lengths), dtype=torch.int64)
    for row, number in enumerate(numbers):
        tokens[row, : lengths[row]] = torch.tensor(list(documents[number]), dtype=torch.int64)
    return Batch(tokens, tuple(numbers), lengths)


def read_ahead(read: Callable[[int], T], numbers: Sequence[int]) -> Iterator[tuple[int, T]]:
    """Yield ``(number, read(number))`` in turn.

    Reading and unpacking a layer of the 27B takes about as long as running it, so the next is read meanwhile, in a
    thread.
    """
    with ThreadPoolExecutor(1, thread_name_prefix="next-layer") as reader:
        ahead = reader.submit(read, numbers[0]) if numbers else None
        for place, number in enumerate(numbers):
            assert ahead is not None
            content = ahead.result()
            ahead = reader.submit(read, numbers[place + 1]) if place + 1 < len(numbers) else None
            yield number, content


def read_layers(
    stack: TextStack, first: int, last: int
) -> Iterator[tuple[int, nn.Module, Mapping[str, torch.Tensor]]]:
    """Yield layers ``first … last - 1``: the number, the module ready to run, and its dense tensors on the CPU."""
    for number, tensors in read_ahead(stack.layer_tensors, range(first, last)):
        yield number, stack.layer(number, tensors), tensors


class LayerStream:
    """A forward pass over all ``batches`` that can stop after any layer and continue later.

    Attributes:
        states: the input of layer ``done``, ``[documents, length, hidden]`` for each batch, in main memory and in
            the stack's dtype.
        done: how many layers have run.
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
        """Run layers ``done … until - 1`` and return ``states``; by default all layers that are left.

        ``after_layer`` is called after each layer, with ``done`` advanced.
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
        """Return the states after the final norm, as ``lm_head`` and the MTP head take them.

        All layers must have run.
        """
        assert self.done == self.stack.depth, "layers are left to run"
        norm = self.stack.norm()
        with torch.inference_mode():
            return [norm(state.to(self.stack.device)).cpu() for state in self.states]
