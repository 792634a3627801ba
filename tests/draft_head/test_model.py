"""How the draft model takes the target's head, and what becomes of it when something is wrong."""

from __future__ import annotations

from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("vllm")

from vllm.model_executor.layers.linear import LinearBase, UnquantizedLinearMethod  # noqa: E402
from vllm.model_executor.layers.quantization.base_config import QuantizeMethodBase  # noqa: E402

from vllm_qwen36_plugin.draft_head import head  # noqa: E402
from vllm_qwen36_plugin.draft_head import model as module  # noqa: E402
from vllm_qwen36_plugin.draft_head.banner import DraftReport  # noqa: E402
from vllm_qwen36_plugin.draft_head.model import Qwen3_5MTP  # noqa: E402
from vllm_qwen36_plugin.draft_head.settings import DraftSettings  # noqa: E402
from vllm_qwen36_plugin.start import SALT  # noqa: E402
from vllm_qwen36_plugin.upstream.tensor_parallel import Rank  # noqa: E402

pytestmark = pytest.mark.engine  # no engine, but vLLM is imported: some seconds

VOCABULARY, WIDTH = 640, 256
FEW = torch.arange(0, VOCABULARY, 5)


class Head(torch.nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.weight = torch.nn.Parameter(torch.randn(VOCABULARY, WIDTH).bfloat16(), requires_grad=False)


class Halved(QuantizeMethodBase):  # type: ignore[misc]
    """Stands for a method that packs: it keeps the weight, and needs no kernel."""

    def create_weights(self, *_: Any, **__: Any) -> None:
        raise AssertionError("never called")

    def process_weights_after_loading(self, layer: torch.nn.Module) -> None:
        assert layer.weight.shape == (VOCABULARY, WIDTH)

    def apply(self, layer: torch.nn.Module, x: torch.Tensor, bias: Any = None) -> torch.Tensor:
        return x @ layer.weight.t()


@pytest.fixture
def drafter(monkeypatch: pytest.MonkeyPatch) -> Callable[..., Any]:
    """A draft model as it is when vLLM has loaded it, without its layers."""
    monkeypatch.setattr(module, "draft_list", lambda *_: None)
    monkeypatch.setattr(module, "ids_to_draft", lambda *_: FEW)

    def make(precision: Any = "bf16", vocabulary: int | None = None, *whole_head: Any) -> Any:
        made = Qwen3_5MTP.__new__(Qwen3_5MTP)
        torch.nn.Module.__init__(made)
        made.config = SimpleNamespace(vocab_size=VOCABULARY)
        made.vllm_config = SimpleNamespace(
            additional_config={}, speculative_config=SimpleNamespace(draft_lm_head_quantization=None)
        )
        made.model = torch.nn.Module()
        made.lm_head = Head()
        made.logits_processor = lambda head, hidden: hidden @ head.weight.t()
        made.draft_head, made._report = None, DraftReport()
        made._settings = DraftSettings(precision, vocabulary, None, *whole_head)
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
    logits = made.compute_logits(hidden)
    torch.testing.assert_close(logits[:, FEW], hidden @ target.weight[FEW].t())
    assert torch.equal(made.get_top_tokens(hidden), logits.argmax(-1))
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


def fake_copy(monkeypatch: pytest.MonkeyPatch, share: float) -> list[int]:
    """Let all tokens be drafted, and a copy of the head take this share; return the bytes that are asked about."""
    asked: list[int] = []

    def share_of_cache(extra: int, _: Any) -> float:
        asked.append(extra)
        return share

    monkeypatch.setattr(module, "ids_to_draft", lambda *_: None)
    monkeypatch.setattr(module, "share_of_cache", share_of_cache)
    monkeypatch.setattr(head, "quantizing_method", lambda *_: Halved())
    return asked


def test_auto_copies_the_whole_head_in_four_bits_where_it_takes_little_of_the_cache(
    drafter: Callable[..., Any], monkeypatch: pytest.MonkeyPatch, shown: Callable[[], str]
) -> None:
    asked = fake_copy(monkeypatch, 0.011)
    made = drafter("w8", 0, "w4", 1 / 16)
    target = hand_over(made)
    assert made.draft_head is not None
    assert made.draft_head.precision == "w4"
    # 4-bit codes, and a BF16 scale of each 32.
    assert asked == [VOCABULARY * WIDTH // 2 + 2 * VOCABULARY * WIDTH // 32]
    hidden = torch.randn(3, WIDTH).bfloat16()
    assert torch.equal(made.get_top_tokens(hidden), (hidden @ target.weight.t()).argmax(-1))
    assert "an output head in W4 of" in shown()
    assert f"for all {VOCABULARY} of {VOCABULARY} tokens (1.1% of the KV cache for it)" in shown()


@pytest.mark.parametrize(
    ("share", "why"),
    [
        (0.07, "a copy in W4 would take 7.0% of the KV cache"),
        (float("inf"), "more than the KV cache has"),
    ],
)
def test_auto_leaves_the_head_where_a_copy_takes_much_of_the_cache(
    share: float,
    why: str,
    drafter: Callable[..., Any],
    monkeypatch: pytest.MonkeyPatch,
    shown: Callable[[], str],
) -> None:
    fake_copy(monkeypatch, share)
    made = drafter("w8", 0, "w4", 1 / 16)
    hand_over(made)
    assert made.draft_head is None
    assert why in shown()
    assert "WARNING" not in shown()


@pytest.mark.parametrize("most", [0, 16])
def test_auto_uses_its_copy_as_far_as_it_was_timed_to_be_faster(
    most: int, drafter: Callable[..., Any], monkeypatch: pytest.MonkeyPatch, shown: Callable[[], str]
) -> None:
    fake_copy(monkeypatch, 0.0)
    monkeypatch.setattr(module, "wins_up_to", lambda *_: most)
    made = drafter("w8", 0, "w4", 1 / 16)
    hand_over(made)
    if most:
        assert [made.draft_head.leaves(positions) for positions in (1, 16, 17)] == [False, False, True]
    else:
        assert made.draft_head is None
        assert "a copy in W4 is no faster on this GPU" in shown()
        assert "WARNING" not in shown()


def test_a_copy_that_was_asked_for_is_made_whatever_it_takes(
    drafter: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = fake_copy(monkeypatch, float("inf"))
    made = drafter("w8", 0)
    hand_over(made)
    assert made.draft_head.precision == "w8"
    assert asked == []


def test_a_copy_of_the_whole_head_is_for_few_positions(
    drafter: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    fake_copy(monkeypatch, 0.0)
    made = drafter("w8", 0, "w4", 1 / 16)
    target = hand_over(made)
    copied: list[int] = []
    monkeypatch.setattr(made.draft_head, "logits", lambda hidden: copied.append(len(hidden)))
    for positions in (1, 64, 65, 256):
        logits = made.compute_logits(torch.randn(positions, WIDTH).bfloat16())
        assert (logits is None) == (positions <= 64)
    assert copied == [1, 64]
    assert made.lm_head is target


def test_a_shorter_list_is_kept_to_at_any_number_of_positions(drafter: Callable[..., Any]) -> None:
    made = drafter()
    hand_over(made)
    logits = made.compute_logits(torch.randn(256, WIDTH).bfloat16())
    assert int(torch.isfinite(logits[0]).sum()) == len(FEW)


def test_auto_shares_a_head_that_is_packed_already(
    drafter: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = fake_copy(monkeypatch, 0.0)
    made = drafter("w8", 0, "w4", 1 / 16)
    packed = torch.nn.Module()
    packed.qweight = torch.nn.Parameter(torch.zeros(4, 4, dtype=torch.int32), requires_grad=False)
    del made.lm_head
    made.lm_head = packed
    assert made.draft_head is None
    assert asked == []


@pytest.mark.parametrize("whole", [(), ("w4", 1 / 16)])
def test_where_vllm_copies_the_head_for_drafts_it_is_left_at_that(
    whole: tuple[Any, ...],
    drafter: Callable[..., Any],
    monkeypatch: pytest.MonkeyPatch,
    shown: Callable[[], str],
) -> None:
    fake_copy(monkeypatch, 0.0)
    made = drafter("w8", 0, *whole)
    made.vllm_config.speculative_config.draft_lm_head_quantization = "fp8"
    hand_over(made)
    assert made.draft_head is None
    assert "vLLM's own copy of it drafts (draft_lm_head_quantization)" in shown()


def test_with_several_gpus_each_makes_its_part_and_the_first_says_so(
    drafter: Callable[..., Any], monkeypatch: pytest.MonkeyPatch, shown: Callable[[], str]
) -> None:
    monkeypatch.setattr(module, "rank", lambda: Rank(0, 2))
    monkeypatch.setattr(module, "make_sharded", head.DraftHead)
    hand_over(drafter())
    assert "for the likeliest 128 of 640 tokens (on each of 2 GPUs)" in shown()
    before = shown()
    monkeypatch.setattr(module, "first_rank", lambda: False)
    hand_over(drafter())
    assert shown() == before


def test_before_it_is_set_up_a_head_is_only_a_head(drafter: Callable[..., Any]) -> None:
    made = drafter()
    made._settings = None
    hand_over(made)
    assert made.draft_head is None


class Plain(UnquantizedLinearMethod):  # type: ignore[misc]
    """vLLM's own method; on CPUs it repacks the weight for a library that keeps no dense one."""

    def process_weights_after_loading(self, layer: torch.nn.Module) -> None:
        layer.processed = True

    def apply(
        self, layer: torch.nn.Module, x: torch.Tensor, bias: torch.Tensor | None = None
    ) -> torch.Tensor:
        return torch.nn.functional.linear(x, layer.weight, bias)


class Linear(LinearBase):  # type: ignore[misc]
    """A linear of vLLM's as it is when its weight is loaded."""

    def __init__(self, prefix: str) -> None:
        torch.nn.Module.__init__(self)
        self.prefix, self.quant_method = prefix, Plain()
        self.weight = torch.nn.Parameter(torch.randn(128, WIDTH).bfloat16(), requires_grad=False)
        self.register_parameter("bias", None)
        self.register_buffer("calls", torch.zeros(1))


class Broken(QuantizeMethodBase):  # type: ignore[misc]
    """A kernel that reads a weight wrongly, or not at all."""

    def __init__(self, raises: bool) -> None:
        self.raises = raises

    def create_weights(self, layer: torch.nn.Module, *args: Any, **kwargs: Any) -> None:
        raise NotImplementedError

    def process_weights_after_loading(self, layer: torch.nn.Module) -> None:
        layer.qweight = torch.nn.Parameter(layer.weight.data.flip(0), requires_grad=False)
        layer.register_buffer("scales", torch.ones(1))
        del layer.weight

    def apply(
        self, layer: torch.nn.Module, x: torch.Tensor, bias: torch.Tensor | None = None
    ) -> torch.Tensor:
        if self.raises:
            raise RuntimeError("no kernel image is available")
        return x @ layer.qweight.t()


@pytest.mark.parametrize(
    ("raises", "reason"), [(False, "its results are off by 1"), (True, "no kernel image is available")]
)
def test_a_linear_whose_results_are_off_stays_dense(
    raises: bool,
    reason: str,
    drafter: Callable[..., Any],
    monkeypatch: pytest.MonkeyPatch,
    shown: Callable[[], str],
) -> None:
    monkeypatch.setattr(module, "UnquantizedLinearMethod", Plain)
    monkeypatch.setattr(module, "quantizing_method", lambda *_: Broken(raises))
    made = drafter("w8")
    made.model.fc, made.model.o_proj = Linear("mtp.fc"), Linear("mtp.o_proj")
    before = {name: value.clone() for name, value in made.model.state_dict().items()}
    weight = made.model.fc.weight
    made._quantize_linears(made._settings)
    for layer in (made.model.fc, made.model.o_proj):
        layer.quant_method.process_weights_after_loading(layer)
    assert made.model.fc.weight is weight
    assert made.model.state_dict().keys() == before.keys()
    assert all(torch.equal(value, before[name]) for name, value in made.model.state_dict().items())
    assert made.model.fc.bias is None
    assert made.model.fc.processed
    x = torch.randn(2, WIDTH).bfloat16()
    assert torch.equal(made.model.fc.quant_method.apply(made.model.fc, x), x @ weight.t())
    hand_over(made)
    log = shown()
    assert f"WARNING vllm-qwen36-plugin: mtp.fc drafts from its own weights because {reason}" in log
    assert "mtp.o_proj" in log
    assert "MTP linears" not in log.splitlines()[-1]
    # The compiled graph is not that of a start in which they were quantized.
    assert made.vllm_config.additional_config[SALT]["drafts"] == "0 linears quantized"


def test_in_w4_the_layers_own_linears_have_four_bits_and_what_feeds_it_eight(
    drafter: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    from vllm.model_executor import parameter

    from vllm_qwen36_plugin.cpu.packed_weights import offer

    offer()
    monkeypatch.setattr(parameter, "get_tensor_model_parallel_rank", lambda: 0)
    monkeypatch.setattr(parameter, "get_tensor_model_parallel_world_size", lambda: 1)
    monkeypatch.setattr(module, "UnquantizedLinearMethod", Plain)
    made = drafter("w4")
    made.model.fc, made.model.o_proj = Linear("mtp.fc"), Linear("mtp.o_proj")
    # In 8 bits rounding makes 0.006, in 4 it makes 0.08.
    within = {made.model.fc: (0.004, 0.012), made.model.o_proj: (0.05, 0.11)}
    dense = {layer: layer.weight.data.clone() for layer in within}
    made._quantize_linears(made._settings)
    x = torch.randn(16, WIDTH).bfloat16()
    for layer, (least, most) in within.items():
        layer.quant_method.process_weights_after_loading(layer)
        exact = x.float() @ dense[layer].float().t()
        error = (layer.quant_method.apply(layer, x).float() - exact).norm() / exact.norm()
        assert least < error < most


def test_a_head_whose_logits_are_off_is_not_used(
    drafter: Callable[..., Any], monkeypatch: pytest.MonkeyPatch, shown: Callable[[], str]
) -> None:
    monkeypatch.setattr(head, "quantizing_method", lambda *_: Broken(raises=False))
    made = drafter("w8")
    target = hand_over(made)
    hidden = torch.randn(3, WIDTH).bfloat16()
    assert torch.equal(made.compute_logits(hidden), hidden @ target.weight.t())
    assert "own output head because its results are off by 1" in shown()
