"""How the draft model takes the target's head, and what becomes of it when something is wrong."""

from __future__ import annotations

from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("vllm")

from vllm_qwen36_plugin.drafts import model as module  # noqa: E402
from vllm_qwen36_plugin.drafts.banner import DraftReport  # noqa: E402
from vllm_qwen36_plugin.drafts.model import Qwen3_5MTP  # noqa: E402
from vllm_qwen36_plugin.drafts.settings import DraftSettings  # noqa: E402

pytestmark = pytest.mark.engine  # no engine, but vLLM is imported: some seconds

VOCABULARY, WIDTH = 640, 256
FEW = torch.arange(0, VOCABULARY, 5)


class Head(torch.nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.weight = torch.nn.Parameter(torch.randn(VOCABULARY, WIDTH).bfloat16(), requires_grad=False)


@pytest.fixture
def drafter(monkeypatch: pytest.MonkeyPatch) -> Callable[..., Any]:
    """A draft model as it is when vLLM has loaded it, without its layers."""
    monkeypatch.setattr(module, "get_tensor_model_parallel_world_size", lambda: 1)
    monkeypatch.setattr(module, "list_for", lambda *_: None)
    monkeypatch.setattr(module, "ids_to_draft", lambda *_: FEW)

    def make(form: Any = "bf16", vocabulary: int | None = None) -> Any:
        made = Qwen3_5MTP.__new__(Qwen3_5MTP)
        torch.nn.Module.__init__(made)
        made.config = SimpleNamespace(vocab_size=VOCABULARY)
        made.vllm_config = None
        made.model = torch.nn.Module()
        made.lm_head = Head()
        made.logits_processor = lambda head, hidden: hidden @ head.weight.t()
        made.draft_head, made._report = None, DraftReport()
        made._drafts = DraftSettings(form, vocabulary, None)
        return made

    return make


def hand_over(drafter: Any) -> Head:
    """As both model runners do."""
    head = Head()
    del drafter.lm_head
    drafter.lm_head = head
    return head


def test_the_head_is_made_of_the_targets_when_it_is_handed_over(drafter: Callable[..., Any]) -> None:
    made = drafter()
    assert made.draft_head is None
    target = hand_over(made)
    hidden = torch.randn(3, WIDTH).bfloat16()
    found = made.compute_logits(hidden)
    torch.testing.assert_close(found[:, FEW], hidden @ target.weight[FEW].t())
    assert torch.equal(made.get_top_tokens(hidden), found.argmax(-1))
    assert set(made.get_top_tokens(torch.randn(64, WIDTH).bfloat16()).tolist()) <= set(FEW.tolist())


def test_another_head_makes_another(drafter: Callable[..., Any]) -> None:
    made = drafter()
    hand_over(made)
    target = hand_over(made)
    hidden = torch.randn(3, WIDTH).bfloat16()
    torch.testing.assert_close(made.compute_logits(hidden)[:, FEW], hidden @ target.weight[FEW].t())


def test_the_target_keeps_its_head(drafter: Callable[..., Any]) -> None:
    made = drafter()
    target = hand_over(made)
    assert made.lm_head is target
    assert target.weight.shape == (VOCABULARY, WIDTH)
    assert [name for name, _ in target.named_parameters()] == ["weight"]


def test_stock_drafts_have_the_targets_logits(drafter: Callable[..., Any], shown: Callable[[], str]) -> None:
    made = drafter("bf16", 0)
    target = hand_over(made)
    hidden = torch.randn(3, WIDTH).bfloat16()
    assert torch.equal(made.compute_logits(hidden), hidden @ target.weight.t())
    assert "the model's output head" in shown()


def test_a_head_that_cannot_be_made_costs_a_warning_and_no_more(
    drafter: Callable[..., Any], monkeypatch: pytest.MonkeyPatch, shown: Callable[[], str]
) -> None:
    def broken(*_: Any) -> Any:
        raise RuntimeError("no such kernel")

    monkeypatch.setattr(module, "DraftHead", broken)
    made = drafter()
    target = hand_over(made)
    hidden = torch.randn(3, WIDTH).bfloat16()
    assert torch.equal(made.compute_logits(hidden), hidden @ target.weight.t())
    assert (
        "WARNING vllm-qwen36-plugin: drafts use the model's own output head because no such kernel" in shown()
    )


def test_with_several_gpus_the_head_stays(
    drafter: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "get_tensor_model_parallel_world_size", lambda: 2)
    made = drafter("w4")
    hand_over(made)
    assert made.draft_head is None


def test_before_it_is_set_up_a_head_is_only_a_head(drafter: Callable[..., Any]) -> None:
    made = drafter()
    made._drafts = None
    hand_over(made)
    assert made.draft_head is None
