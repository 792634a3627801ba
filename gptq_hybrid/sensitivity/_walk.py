"""Walk variants of a model through its layers together, so that each layer is read once for all of them."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import nn

from gptq_hybrid.checkpoint import LinearSpec
from gptq_hybrid.streaming import States, TextStack, read_layers

from ._precisions import Precision
from ._units import Unit


@dataclass(frozen=True)
class Variant:
    """The reference with ``units`` in ``precision`` and all else left alone; units of layers only."""

    name: str
    precision: Precision
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
        return variant_key(self.precision, self.name)


def variant_key(precision: Precision, name: str) -> str:
    """Return the key of a variant in results, also its file name."""
    return f"{precision.key}.{name}"


@dataclass(frozen=True, slots=True)
class Walked:
    """``reference``: states at the input of the layer ``until``; ``variants``: final-normed states by key."""

    reference: States
    variants: dict[str, States]


def walk(
    stack: TextStack,
    reference: States,
    first: int,
    variants: Sequence[Variant],
    *,
    until: int,
    on_layer: Callable[[], None] | None = None,
) -> Walked:
    """Run ``variants`` from layer ``first`` through the last one, and the reference up to the input of ``until``.

    Args:
        reference: states of the reference at the input of ``first``, ``[documents, length, hidden]`` for each
            batch; the list is not changed.
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
                units = [unit for unit in variant.units if unit.layer == number]
                with _replaced(stack, layer, number, variant.precision, units, tensors):
                    active[variant.key] = _run_layer(stack, layer, states)
                if on_layer is not None:
                    on_layer()
            if number < until:
                own = _run_layer(stack, layer, own)
                if on_layer is not None:
                    on_layer()
    return Walked(own, {key: apply_final_norm(stack, states) for key, states in active.items()})


def apply_final_norm(stack: TextStack, states: States) -> States:
    """Return the states after the final norm, as a new list."""
    norm = stack.norm()
    with torch.inference_mode():
        return [norm(state.to(stack.device)).cpu() for state in states]


def _run_layer(stack: TextStack, layer: nn.Module, states: States) -> States:
    return [stack.run_layer(layer, state.to(stack.device)).cpu() for state in states]


@contextmanager
def _replaced(
    stack: TextStack,
    layer: nn.Module,
    number: int,
    precision: Precision,
    units: Sequence[Unit],
    tensors: Mapping[str, torch.Tensor],
) -> Iterator[None]:
    """Give ``layer`` the weights of ``units`` in ``precision``, and restore its own afterwards."""
    prefix = f"{stack.weights.layout.layers_prefix}.{number}."
    before: list[tuple[nn.Parameter, torch.Tensor]] = []
    try:
        for linear in (linear for unit in units for linear in unit.linears):
            leaf = linear.weight.name.removeprefix(prefix)
            parameter = layer.get_parameter(leaf)
            before.append((parameter, parameter.data))
            parameter.data = replace_weight(stack, precision, linear, tensors[leaf])
        yield
    finally:
        for parameter, data in before:
            parameter.data = data


def replace_weight(
    stack: TextStack, precision: Precision, linear: LinearSpec, dense: torch.Tensor
) -> torch.Tensor:
    """Return the weight of ``linear`` in ``precision``, on the stack's device and in its dtype."""
    # Rounding runs on the device: trying 41 scales for each group takes minutes per layer of the 27B on a CPU.
    return precision.weight(linear, dense.to(stack.device)).to(stack.dtype)
