"""When verification takes the copy that drafts have, and when the whole head."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("vllm")

from tests.verify_head.made import N, head, states  # noqa: E402
from vllm_qwen36_plugin.verify_head import model, offer  # noqa: E402
from vllm_qwen36_plugin.verify_head.head import attached  # noqa: E402

pytestmark = pytest.mark.engine  # no engine, but vLLM is imported: some seconds


class Head(torch.nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.weight = torch.nn.Parameter(head().weight, requires_grad=False)


class Stock:
    """vLLM's model as far as it is used."""

    def __init__(self, lm_head: Head) -> None:
        self.lm_head = lm_head
        self.loaded = 0

    def compute_logits(self, hidden_states: Any) -> Any:
        return torch.nn.functional.linear(hidden_states, self.lm_head.weight)

    def load_weights(self, weights: Any) -> None:
        self.loaded += 1


def config(**parts: Any) -> Any:
    return SimpleNamespace(
        model_config=SimpleNamespace(**parts.pop("model", {})),
        lora_config=parts.pop("lora", None),
        speculative_config=SimpleNamespace(**parts),
    )


def copy(**changes: Any) -> Any:
    return SimpleNamespace(**{"ids": None, "precision": "w4", "logits": head().logits, **changes})


def always(logits: Any, weight: Any) -> int:
    """It is faster for as many rows as were asked about."""
    return 64


@pytest.fixture(autouse=True)
def no_patch(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(offer, "publish_greedy_steps", lambda: None)


@pytest.fixture
def warnings(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    said: list[str] = []
    monkeypatch.setattr(offer.logger, "warning", lambda text, *values: said.append(text % values))
    return said


def test_greedy_steps_of_few_rows_meet_the_copy_and_no_others(monkeypatch: pytest.MonkeyPatch) -> None:
    lm_head = Head()
    made = model.verifying(Stock)(lm_head)
    names = list(lm_head.state_dict())
    offer.offer(lm_head, N, copy(), config(), always)
    assert attached(lm_head) is not None
    assert list(lm_head.state_dict()) == names
    plain = Stock(lm_head)
    few, many = states(4), states(65)
    for greedy, hidden, same in ((False, few, True), (True, many, True), (True, few, False)):
        monkeypatch.setattr(model, "only_the_largest_counts", lambda greedy=greedy: greedy)
        logits, stock = made.compute_logits(hidden), plain.compute_logits(hidden)
        assert torch.equal(logits, stock) is same
        assert torch.equal(logits.argmax(-1), stock.argmax(-1))


def test_other_weights_end_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(model, "only_the_largest_counts", lambda: True)
    lm_head = Head()
    made = model.verifying(Stock)(lm_head)
    offer.offer(lm_head, N, copy(), config(), always)
    made.load_weights([])
    assert made.loaded == 1
    assert attached(lm_head) is None
    assert torch.equal(made.compute_logits(states(2)), Stock(lm_head).compute_logits(states(2)))


@pytest.mark.parametrize(
    ("drafts", "settings", "why"),
    [
        (None, config(), "drafts have no copy"),
        (copy(ids=torch.arange(5)), config(), "drafts have no copy"),
        (copy(precision="w8"), config(), "drafts have no copy"),
        (copy(), config(lora=object()), "LoRA"),
        (copy(), config(model={"head_dtype": torch.float32}), "another type"),
        (copy(), config(rejection_sample_method="fly"), "fly"),
        (copy(), config(enable_adaptive_verification=True), "adaptive verification"),
    ],
)
def test_what_stands_in_the_way_is_said_once(
    warnings: list[str], drafts: Any, settings: Any, why: str
) -> None:
    lm_head = Head()
    offer.offer(lm_head, N, drafts, settings, always)
    assert attached(lm_head) is None
    assert len(warnings) == 1
    assert "the whole output head verifies because" in warnings[0]
    assert why in warnings[0]


def test_a_head_that_is_not_in_bf16_stays_whole(warnings: list[str]) -> None:
    lm_head = Head()
    lm_head.weight.data = lm_head.weight.data.half()
    offer.offer(lm_head, N, copy(), config(), always)
    assert attached(lm_head) is None
    assert "not in BF16" in warnings[0]


def test_more_rows_than_it_is_faster_for_take_the_whole_head(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(model, "only_the_largest_counts", lambda: True)
    lm_head = Head()
    made, plain = model.verifying(Stock)(lm_head), Stock(lm_head)
    offer.offer(lm_head, N, copy(), config(), lambda logits, weight: logits(states(4)).shape[0])
    assert not torch.equal(made.compute_logits(states(4)), plain.compute_logits(states(4)))
    assert torch.equal(made.compute_logits(states(5)), plain.compute_logits(states(5)))


def test_where_it_is_slower_it_is_left(warnings: list[str]) -> None:
    lm_head = Head()
    offer.offer(lm_head, N, copy(), config(), lambda logits, weight: 0)
    assert attached(lm_head) is None
    assert "takes longer on this GPU" in warnings[0]
