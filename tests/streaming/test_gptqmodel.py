"""The streamed forward pass of a GPTQ checkpoint against gptqmodel's own, natural and permuted ``g_idx``."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from gptq_hybrid.demo.builder import DemoCheckpoint
from gptq_hybrid.streaming import CheckpointWeights, make_batches
from tests.streaming.test_forward import load_whole_model, streamed_logits

ROWS = 6


@pytest.fixture(scope="module", params=["static", "reference"])
def made(request: pytest.FixtureRequest, quantized: Callable[..., Any]) -> Path:
    path: Path = quantized(request.param).path
    return path


@pytest.fixture(scope="module")
def loaded(made: Path) -> Any:
    import gptq_hybrid

    gptq_hybrid.register()
    from gptqmodel import BACKEND, GPTQModel

    return GPTQModel.load(str(made), device="cpu", backend=BACKEND.TORCH, dtype=torch.float16).model


def quantized_linears(model: Any) -> dict[str, Any]:
    return {name: module for name, module in model.named_modules() if hasattr(module, "dequantize_weight")}


def test_weights_are_those_gptqmodel_dequantizes(made: Path, loaded: Any) -> None:
    weights = CheckpointWeights(made)
    names = {linear.name for linear in weights.layout.quantized}
    modules = quantized_linears(loaded)
    assert len(modules) == len(names)
    permuted = 0
    for linear in weights.layout.quantized:
        module = next(
            m
            for n, m in modules.items()
            if linear.name.endswith(n.removeprefix("model.")) or n == linear.name
        )
        expected = module.dequantize_weight().T.float()
        own = weights.under(f"{linear.name}.")["weight"]
        # Scales are stored in float16, in which gptqmodel multiplies: one rounding, to eleven bits.
        torch.testing.assert_close(own, expected, rtol=2**-11, atol=2**-24)
        order = module.g_idx.tolist()
        permuted += order != sorted(order)
    assert (permuted > 0) == ("reference" in str(made))


@torch.inference_mode()
def test_logits_are_those_of_gptqmodel_s_weights_in_transformers(
    made: Path, loaded: Any, original: DemoCheckpoint, calibration: list[dict[str, list[int]]]
) -> None:
    whole = load_whole_model(original.path)
    parts = dict(whole.named_modules())
    for name, module in quantized_linears(loaded).items():
        # The text model alone has no `language_model` in its names.
        parts[name.replace("language_model.", "")].weight.data = module.dequantize_weight().T.float()
    documents = [row["input_ids"][:96] for row in calibration[:ROWS]]
    streamed = streamed_logits(made, make_batches(documents, 200))
    for number, ids in enumerate(documents):
        tokens = torch.tensor([ids])
        expected = whole(input_ids=tokens).logits[0]
        error = (streamed[number] - expected).abs().max() / expected.std()
        # What that rounding does, held against what rounding to 4 bits did.
        unquantized = streamed_logits(original.path, make_batches([ids], 200))[0]
        assert error < 0.02 * (unquantized - expected).abs().max() / expected.std()
        # And its kernel, in float16, says the same next tokens.
        kernel = loaded(input_ids=tokens).logits[0]
        assert (streamed[number].argmax(-1) == kernel.argmax(-1)).float().mean() > 0.97
