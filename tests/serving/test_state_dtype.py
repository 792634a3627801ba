"""The measurement of states in 16 bits: rounding is what it measures, and nothing else."""

from __future__ import annotations

import pytest
import torch

from .state_dtype import CHECKPOINT, documents, load, measure


@pytest.fixture(scope="module")
def measured() -> dict[str, dict[str, float]]:
    found = measure(load(CHECKPOINT), documents(CHECKPOINT, 24, 1)[:2], ("float32", "float16", "bfloat16"))
    dtypes: dict[str, dict[str, float]] = found["dtypes"]
    return dtypes


def test_states_that_are_not_rounded_change_nothing(measured: dict[str, dict[str, float]]) -> None:
    assert measured["float32"]["kld"] == pytest.approx(0, abs=1e-9)
    assert measured["float32"]["agree"] == 1


def test_fewer_bits_of_mantissa_cost_more(measured: dict[str, dict[str, float]]) -> None:
    """Eleven bits and eight: an error eight times as large, a divergence 64 times, less what float32 adds."""
    assert measured["bfloat16"]["kld"] > 10 * abs(measured["float16"]["kld"])


def test_steps_are_those_of_the_whole_text_at_once() -> None:
    from .state_dtype import Stepped

    model, ids = load(CHECKPOINT), documents(CHECKPOINT, 24, 1)[:2]
    with torch.inference_mode():
        whole = model(input_ids=ids).logits.float().log_softmax(-1)
        stepped = Stepped(model, torch.float32)
        steps = torch.stack([stepped.step(ids[:, at]) for at in range(ids.shape[1])], 1)
    assert torch.allclose(steps, whole, atol=2e-3)
