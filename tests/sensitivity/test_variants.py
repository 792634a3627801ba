"""A variant is the model with one module replaced: held against a forward pass of that model."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import pytest
import torch

from gptq_hybrid.checkpoint import LinearSpec
from gptq_hybrid.evaluate.passes import PassSettings, run_pass
from gptq_hybrid.evaluate.tokens import score_tokens
from gptq_hybrid.sensitivity import Unit, list_units
from gptq_hybrid.sensitivity._passes import Passes
from gptq_hybrid.sensitivity._precisions import Rounded
from gptq_hybrid.sensitivity._walk import Variant
from gptq_hybrid.streaming import Batch, CheckpointWeights, LayerStream, OutputHead, Overlay, TextStack

from .conftest import DOCUMENTS, DRAFTS

CPU = torch.device("cpu")
COARSE = Rounded(3, 128)  # coarse, so that every variant is far from the reference
LAYERS = "model.language_model.layers"


def replaced(weights: CheckpointWeights, linears: Sequence[LinearSpec]) -> Overlay:
    """The model with these linears rounded, as any forward pass would read it."""
    replaced_linears = {linear.weight.name: linear for linear in linears}
    return Overlay(
        weights,
        lambda name, tensor: (
            COARSE.weight(replaced_linears[name], tensor) if name in replaced_linears else tensor
        ),
    )


def direct(
    weights: CheckpointWeights, model: Overlay, batches: Sequence[Batch]
) -> Mapping[str, np.ndarray[Any, Any]]:
    """KLD and top-1 sums by document from two full forward passes and full logits."""
    sides = []
    for source in (weights, model):
        stack = TextStack(source, CPU, torch.float32)
        stream = LayerStream(stack, batches)
        stream.run()
        sides.append((stream.final(), OutputHead(stack)))
    kld, top1 = np.zeros(len(DOCUMENTS)), np.zeros(len(DOCUMENTS))
    for place, batch in enumerate(batches):
        for row, (number, length) in enumerate(zip(batch.numbers, batch.lengths, strict=True)):
            logits = [head.logits(states[place][row, : length - 1]) for states, head in sides]
            scores = score_tokens(logits[0], logits[1], batch.tokens[row, 1:length])
            kld[number], top1[number] = float(scores[0].double().sum()), float(scores[1].sum())
    return {"kld": kld, "top1": top1}


def run(
    passes: Passes, layers: Sequence[Variant] = (), heads: Sequence[Any] = (), drafts: Sequence[Any] = ()
) -> dict[str, Mapping[str, Any]]:
    results: dict[str, Mapping[str, Any]] = {}
    passes.run(layers, heads, drafts, reference_drafts="own", save=results.__setitem__)
    return results


def unit(weights: CheckpointWeights, name: str) -> Unit:
    return next(u for u in list_units(weights.layout, mtp=True) if u.name == name)


NAMES = [
    f"{LAYERS}.0.mlp.gate_up_proj",
    f"{LAYERS}.2.linear_attn.in_proj_qkvz",
    f"{LAYERS}.3.self_attn.qkv_proj",
    f"{LAYERS}.7.mlp.down_proj",
]


@pytest.fixture(scope="module")
def alone(weights: CheckpointWeights, batches: list[Batch]) -> dict[str, Mapping[str, Any]]:
    """What each of NAMES costs, computed directly."""
    return {name: direct(weights, replaced(weights, unit(weights, name).linears), batches) for name in NAMES}


@pytest.mark.parametrize("room", [100, 1])
def test_single_modules_cost_what_a_forward_pass_with_them_says(
    weights: CheckpointWeights,
    passes: Callable[..., Passes],
    alone: dict[str, Mapping[str, Any]],
    room: int,
) -> None:
    variants = [Variant(name, COARSE, (unit(weights, name),)) for name in reversed(NAMES)]
    results = run(passes(room), variants)
    for name, variant in zip(reversed(NAMES), variants, strict=True):
        assert alone[name]["kld"].min() > 1e-4
        np.testing.assert_allclose(results[variant.key]["kld"], alone[name]["kld"], rtol=2e-4, atol=1e-6)
        np.testing.assert_array_equal(results[variant.key]["top1"], alone[name]["top1"])


def test_all_modules_at_once_are_replaced_in_every_layer(
    weights: CheckpointWeights, passes: Callable[..., Passes], batches: list[Batch]
) -> None:
    units = tuple(u for u in list_units(weights.layout, mtp=False) if u.place == "layer")
    variant = Variant("everything", COARSE, units)
    results = run(passes(), [variant])
    expected = direct(weights, replaced(weights, weights.layout.quantized), batches)
    np.testing.assert_allclose(results[variant.key]["kld"], expected["kld"], rtol=2e-4)


def test_the_output_head_is_scored_against_the_original_one(
    weights: CheckpointWeights, passes: Callable[..., Passes], batches: list[Batch]
) -> None:
    head = unit(weights, "lm_head")
    results = run(passes(), heads=[("head", COARSE, head)])
    expected = direct(weights, replaced(weights, head.linears), batches)
    assert expected["kld"].min() > 1e-3
    np.testing.assert_allclose(results["head"]["kld"], expected["kld"], rtol=2e-4)


def test_drafts_of_a_changed_mtp_head_are_those_of_a_model_with_it(
    weights: CheckpointWeights, passes: Callable[..., Passes], batches: list[Batch]
) -> None:
    head = unit(weights, "mtp")
    results = run(passes(), drafts=[("changed", COARSE, head)])
    settings = PassSettings(CPU, torch.float32, DRAFTS)
    for key, model in (("own", weights), ("changed", replaced(weights, head.linears))):
        agreed = run_pass(model, batches, settings, has_mtp=True).agreed
        for number, marks in agreed.items():
            leading = np.logical_and.accumulate(marks.numpy(), axis=1)
            assert results[key]["accepted"][number] == leading.sum()
            assert results[key]["positions"][number] == len(DOCUMENTS[number]) - DRAFTS


def test_the_reference_is_left_as_it_was(weights: CheckpointWeights, passes: Callable[..., Passes]) -> None:
    """A module swapped in for one variant must be out again for the next."""
    names = [f"{LAYERS}.2.mlp.down_proj", f"{LAYERS}.2.linear_attn.out_proj"]
    variants = [Variant(name, COARSE, (unit(weights, name),)) for name in names]
    both, last = run(passes(), variants), run(passes(), variants[1:])
    np.testing.assert_array_equal(both[variants[1].key]["kld"], last[variants[1].key]["kld"])
