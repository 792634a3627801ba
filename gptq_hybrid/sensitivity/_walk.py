"""Variants of a model carried through its layers together, each layer read once for all of them."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import nn

from gptq_hybrid.checkpoint import LinearSpec
from gptq_hybrid.streaming import States, TextStack, read_layers

from ._forms import Form
from ._units import Unit


@dataclass(frozen=True)
class Variant:
    """The reference with ``units`` in ``form`` and all else left alone. Units of layers only."""

    name: str
    form: Form
    units: tuple[Unit, ...]

    @property
    def first(self) -> int:
        """The first layer that differs."""
        return min(self.layers)

    @property
    def layers(self) -> set[int]:
        return {unit.layer for unit in self.units if unit.layer is not None}

    @property
    def key(self) -> str:
        """A file name."""
        return f"{self.form.key}.{self.name}"


@dataclass(frozen=True, slots=True)
class Carried:
    """``reference``: states at the layer asked for; ``variants``: final-normed states by ``Variant.key``."""

    reference: States
    variants: dict[str, States]


def carry(
    stack: TextStack,
    reference: States,
    first: int,
    variants: Sequence[Variant],
    *,
    until: int,
    on_layer: Callable[[], None] | None = None,
) -> Carried:
    """Run ``variants`` from layer ``first`` through the last one, the reference up to the input of ``until``.

    Args:
        reference: states of the reference at the input of ``first``, ``[documents, length, hidden]`` a batch; the
            list is not changed.
        variants: none of them differs before ``first``.
        until: at least the first layer of every variant.
        on_layer: called for every layer that one variant, or the reference, has passed.
    """
    own = list(reference)
    active: dict[str, States] = {}
    last = stack.depth if variants else until
    for number, layer, tensors in read_layers(stack, first, last):
        with torch.inference_mode():
            for variant in variants:
                if number < variant.first:
                    continue
                states = active.get(variant.key, own)
                here = [unit for unit in variant.units if unit.layer == number]
                with _replaced(stack, layer, number, variant.form, here, tensors):
                    active[variant.key] = _through(stack, layer, states)
                if on_layer is not None:
                    on_layer()
            if number < until:
                own = _through(stack, layer, own)
                if on_layer is not None:
                    on_layer()
    return Carried(own, {key: final(stack, states) for key, states in active.items()})


def final(stack: TextStack, states: States) -> States:
    """The states behind the final norm; a new list."""
    norm = stack.norm()
    with torch.inference_mode():
        return [norm(state.to(stack.device)).cpu() for state in states]


def _through(stack: TextStack, layer: nn.Module, states: States) -> States:
    return [stack.run_layer(layer, state.to(stack.device)).cpu() for state in states]


@contextmanager
def _replaced(
    stack: TextStack,
    layer: nn.Module,
    number: int,
    form: Form,
    units: Sequence[Unit],
    tensors: Mapping[str, torch.Tensor],
) -> Iterator[None]:
    """``layer`` with the weights of ``units`` in ``form``; as before afterwards."""
    prefix = f"{stack.weights.layout.layers_prefix}.{number}."
    before: list[tuple[nn.Parameter, torch.Tensor]] = []
    try:
        for linear in (linear for unit in units for linear in unit.linears):
            leaf = linear.weight.name.removeprefix(prefix)
            parameter = layer.get_parameter(leaf)
            before.append((parameter, parameter.data))
            parameter.data = replacement(stack, form, linear, tensors[leaf])
        yield
    finally:
        for parameter, data in before:
            parameter.data = data


def replacement(stack: TextStack, form: Form, linear: LinearSpec, dense: torch.Tensor) -> torch.Tensor:
    """The weight of ``linear`` in ``form``, on the stack's device and in its dtype."""
    # Rounded on the device: the 41 scales tried for each group take minutes a layer of the 27B on a CPU.
    return form.weight(linear, dense.to(stack.device)).to(stack.dtype)
