"""Per-token scores against values known by formula or by hand."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

import gptq_hybrid.evaluate.passes as pass_module
from gptq_hybrid.calibration import EncodedDocument
from gptq_hybrid.evaluate.passes import Pass
from gptq_hybrid.evaluate.tokens import score_documents, score_tokens
from gptq_hybrid.streaming import CheckpointWeights, OutputHead, TextStack, make_batches
from tests.streaming.rounded import CHECKPOINT

VOCABULARY = 248_320  # the 27B's: sums are as long as there


def gaussian(tokens: int, scale: float, seed: int = 0, vocabulary: int = VOCABULARY) -> torch.Tensor:
    return torch.randn(tokens, vocabulary, generator=torch.Generator().manual_seed(seed)) * scale


def targets(tokens: int) -> torch.Tensor:
    return torch.arange(tokens) * 7 + 3


def test_a_distribution_against_itself_is_exactly_zero() -> None:
    logits = gaussian(4, 4.0)
    kld, top1, nll_ref, nll = score_tokens(logits, logits.clone(), targets(4))
    assert kld.tolist() == [0.0] * 4
    assert top1.all()
    assert torch.equal(nll_ref, nll)


def test_one_shifted_logit_has_its_closed_form() -> None:
    """With delta added to the logit of token j: KL(P ‖ Q) = log(1 + p_j (e^delta − 1)) − p_j delta."""
    logits = gaussian(3, 3.0)
    for delta in (0.01, 0.5, -2.0, 6.0):
        other = logits.clone()
        other[:, 11] += delta
        p = torch.softmax(logits.double(), -1)[:, 11]
        expected = torch.log1p(p * math.expm1(delta)) - p * delta
        kld, *_ = score_tokens(logits, other, targets(3))
        torch.testing.assert_close(kld.double(), expected, atol=2e-7, rtol=1e-3)
    # And where the token holds half of everything, so that the value is large: log((1 + e) / 2) − 1/2.
    logits = torch.full((1, 5), -100.0)
    logits[0, :2] = 0.0
    other = logits.clone()
    other[0, 0] += 1.0
    kld, *_ = score_tokens(logits, other, torch.tensor([0]))
    assert kld.item() == pytest.approx(math.log((1 + math.e) / 2) - 0.5, abs=1e-6)


@pytest.mark.parametrize("temperature", [0.9, 0.99, 1.1])
def test_a_changed_temperature_of_gaussian_logits_has_its_known_value(temperature: float) -> None:
    """KL(softmax(z) ‖ softmax(t z)) = A(t) − A(1) − (t − 1) A'(1), A the log-partition function in t.

    For normal logits of variance s² and a large vocabulary, A(t) → log V + t² s² / 2: KL → s² (t − 1)² / 2.
    """
    scale = 1.0
    logits = gaussian(2, scale)
    kld, *_ = score_tokens(logits, logits * temperature, targets(2))
    expected = scale**2 * (temperature - 1) ** 2 / 2
    torch.testing.assert_close(kld, torch.full((2,), expected), atol=0, rtol=0.02)


def test_a_constant_added_to_all_logits_changes_nothing() -> None:
    logits = gaussian(2, 3.0)
    kld, top1, nll_ref, nll = score_tokens(logits, logits + 12.5, targets(2))
    assert kld.max() < 2e-6
    assert top1.all()
    torch.testing.assert_close(nll, nll_ref, atol=1e-5, rtol=0)


def test_small_divergences_agree_with_float64() -> None:
    logits = gaussian(8, 4.0)
    for noise in (0.003, 0.03):
        other = logits + gaussian(8, noise, seed=1)
        p = torch.log_softmax(logits.double(), -1)
        expected = (p.exp() * (p - torch.log_softmax(other.double(), -1))).sum(-1)
        kld, *_ = score_tokens(logits, other, targets(8))
        # 5e-6 to 5e-4 nats; what 8 bits and BF16 lose lies above.
        torch.testing.assert_close(kld.double(), expected, atol=4e-7, rtol=1e-3)


def test_top1_and_nll_by_hand() -> None:
    reference = torch.tensor([[0.0, math.log(3.0)], [math.log(9.0), 0.0]])
    other = torch.tensor([[0.0, math.log(4.0)], [0.0, math.log(4.0)]])
    kld, top1, nll_ref, nll = score_tokens(reference, other, torch.tensor([1, 1]))
    assert top1.tolist() == [True, False]
    assert nll_ref.tolist() == pytest.approx([math.log(4 / 3), math.log(10)])
    assert nll.tolist() == pytest.approx([math.log(5 / 4), math.log(5 / 4)])
    expected = [
        0.25 * math.log(0.25 / 0.2) + 0.75 * math.log(0.75 / 0.8),
        0.9 * math.log(0.9 / 0.2) + 0.1 * math.log(0.1 / 0.8),
    ]
    assert kld.tolist() == pytest.approx(expected, abs=1e-6)


def test_nan_is_not_taken_for_zero() -> None:
    broken = gaussian(1, 1.0, vocabulary=64)
    broken[0, 5] = torch.nan
    kld, *_ = score_tokens(gaussian(1, 1.0, vocabulary=64), broken, torch.tensor([0]))
    assert kld.isnan().all()


def scored(documents: list[list[int]], noise: float) -> list[object]:
    """The trained model's output head on made-up states."""
    stack = TextStack(CheckpointWeights(CHECKPOINT), torch.device("cpu"), torch.float32)
    head = OutputHead(stack)
    batches = make_batches(documents, 100)
    generator = torch.Generator().manual_seed(0)
    hidden = [torch.randn(*b.tokens.shape, 256, generator=generator) for b in batches]
    other = [h + noise * torch.randn(h.shape, generator=generator) for h in hidden]
    encoded = [EncodedDocument("d", f"{i:064}", ids) for i, ids in enumerate(documents)]
    agreed = {i: torch.ones(len(ids) - 2, 2, dtype=torch.bool) for i, ids in enumerate(documents)}
    return score_documents(encoded, batches, (Pass(hidden, {}), head), (Pass(other, agreed), head), drafts=2)


def test_how_many_logits_are_held_at_once_changes_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    documents = [list(range(10, 10 + n)) for n in (40, 17, 90)]
    whole = scored(documents, 0.1)
    monkeypatch.setitem(pass_module._LOGITS, "cpu", 8192 * 7)
    monkeypatch.setattr(pass_module, "_LEAST_TOKENS", 1)
    pieces = scored(documents, 0.1)
    assert [d.key for d in whole] == [d.key for d in pieces]
    for one, other in zip(whole, pieces, strict=True):
        assert one.kld.mean() > 1e-3
        np.testing.assert_allclose(one.kld, other.kld, rtol=1e-4, atol=1e-6)
        np.testing.assert_allclose(one.nll, other.nll, rtol=1e-5, atol=1e-5)
        np.testing.assert_array_equal(one.top1, other.top1)


def test_every_token_but_the_first_is_predicted_and_padding_is_not() -> None:
    documents = [list(range(10, 10 + n)) for n in (40, 17, 90)]
    in_order = scored(documents, 0.1)
    by_key = {d.key: d for d in in_order}
    assert list(by_key) == [f"{i:064}" for i in range(3)], "in the order given, not that of the batches"
    for i, ids in enumerate(documents):
        document = by_key[f"{i:064}"]
        assert len(document.kld) == len(document.nll) == len(document.top1) == len(ids) - 1
        assert document.drafts.shape == (len(ids) - 2, 2)
        assert document.drafts_ref.shape == (0, 2), "no head, no positions"
