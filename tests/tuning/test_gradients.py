"""The streamed backward pass against autograd through transformers' whole model."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from gptq_hybrid.packing import unpack_words
from gptq_hybrid.streaming import Batch, CheckpointWeights, LayerStream, OutputHead, TextStack, make_batches
from gptq_hybrid.tuning import Parameters, TunedStack
from tests.streaming.conftest import documents, packed
from tests.streaming.rounded import CHECKPOINT, copy_with, read_config, read_tensors

__all__ = ["documents", "packed"]  # fixtures
CPU = torch.device("cpu")


def original(batches: list[Batch]) -> tuple[list[torch.Tensor], OutputHead]:
    stack = TextStack(CheckpointWeights(CHECKPOINT), CPU, torch.float32)
    stream = LayerStream(stack, batches)
    stream.run()
    return stream.final(), OutputHead(stack)


def whole_model(folder: Path, target: Path) -> torch.nn.Module:
    """transformers' model with the dense weights of a packed checkpoint."""
    from transformers import AutoModelForCausalLM

    weights, config = CheckpointWeights(folder), read_config()
    tensors = read_tensors(CHECKPOINT)
    for linear in weights.layout.quantized:
        tensors[linear.weight.name] = weights.under(f"{linear.name}.")["weight"]
    copy_with(target, tensors, config)
    model: torch.nn.Module = AutoModelForCausalLM.from_pretrained(target, dtype=torch.float32)
    return model.eval()


@pytest.mark.parametrize("bits", [4, 8])
def test_gradients_are_those_of_autograd_through_the_whole_model(
    bits: int,
    documents: list[list[int]],
    packed: Callable[..., Path],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    # Logits in chunks of 64 tokens: several a batch, which is padded.
    monkeypatch.setattr("gptq_hybrid.tuning._passes._LOGITS", {"cpu": 1})
    folder, tokens = packed(bits), sum(map(len, documents))
    model, teacher = whole_model(folder, tmp_path / "dense"), whole_model(CHECKPOINT, tmp_path / "bf16")
    expected = 0.0
    for ids in documents:
        with torch.no_grad():
            reference = teacher(input_ids=torch.tensor([ids])).logits[0].log_softmax(-1)
        own = model(input_ids=torch.tensor([ids])).logits[0].log_softmax(-1)
        loss = (reference.exp() * (reference - own)).sum() / tokens
        loss.backward()
        expected += float(loss.detach())

    weights = CheckpointWeights(folder)
    parameters = Parameters(weights)
    batches = make_batches(documents, 150)
    states, head = original(batches)
    tuned = TunedStack(weights, parameters, CPU, torch.float32, head)
    assert tuned.gradients(batches, states) == pytest.approx(expected, rel=1e-4)
    assert tuned.divergence(batches, states) == pytest.approx(expected, rel=1e-4)

    dense = dict(model.named_parameters())
    assert len(parameters.scales()) == len(weights.layout.quantized)
    for name, value in parameters.values.items():
        assert value.grad is not None, name
        short = name.replace("model.language_model.", "model.")
        if name.endswith(".scales"):
            module = name.removesuffix(".scales")
            gradient = dense[short.removesuffix("scales") + "weight"].grad
            assert gradient is not None
            codes = unpack_words(weights.read(f"{module}.qweight"), bits).float() - 2 ** (bits - 1)
            scales = weights.read(name).float()
            # The parameter is the relative change of the scale.
            own_grad = (gradient.t() * codes).view(len(scales), -1, codes.shape[1]).sum(1) * scales
        else:
            own_grad = dense[short].grad
        assert own_grad is not None
        assert torch.allclose(value.grad, own_grad, rtol=1e-3, atol=float(own_grad.abs().max()) * 1e-4), name
