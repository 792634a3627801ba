"""Norms that write in order: which do, what the linears behind them return, and what keeps its gather."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator
from typing import Any

import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("vllm")

from tests.act_order.layers import HIDDEN, Decoder, Layer, Plain, act_order_config, finish  # noqa: E402
from tests.act_order.layers import one_rank as build_on_one_rank  # noqa: E402
from vllm_qwen36_plugin.act_order import claim, method, norms  # noqa: E402
from vllm_qwen36_plugin.act_order.norm import NormInOrder  # noqa: E402
from vllm_qwen36_plugin.errors import CompatError  # noqa: E402

pytestmark = pytest.mark.engine  # no engine, but vLLM's linears are imported: some seconds

Shown = Callable[[], str]
MIXERS = ("linear_attn", "self_attn")


@pytest.fixture(autouse=True)
def one_rank(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    from vllm.model_executor.layers.layernorm import GemmaRMSNorm

    monkeypatch.setattr(claim, "FOLD_NORMS", "always")
    monkeypatch.setattr(norms, "decoder_classes", lambda: (Decoder, GemmaRMSNorm))
    with build_on_one_rank():
        yield


def built(
    mixer: str, change: Callable[[Any], None] | None = None, *, announced: bool = True, **load: Any
) -> Any:
    """A model of one decoder layer, loaded and finished; ``announced`` to its config, as `announcing` does."""
    config = act_order_config()
    model = torch.nn.Module()
    model.layers = torch.nn.ModuleList([Decoder(config, mixer)])
    layer = model.layers[0]
    layer.load(**load)
    if change:
        change(layer)
    if announced:
        config.siblings.set_model(model)
    finish(model)
    return layer


def inputs() -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(5)
    x, residual = torch.randn(2, 7, HIDDEN, generator=generator).bfloat16()
    return x, residual


def in_order(layer: Any) -> list[str]:
    return [name for name, module in layer.named_children() if isinstance(module, NormInOrder)]


def gathering(layer: Any) -> list[str]:
    return [name for name, module in layer.named_modules() if getattr(module, "act_order", None) is not None]


@pytest.mark.parametrize("residual", [True, False])
@pytest.mark.parametrize("mixer", MIXERS)
def test_linears_behind_a_norm_in_order_return_what_they_did_and_gather_nothing(
    mixer: str, residual: bool
) -> None:
    plain, folded = built(mixer, announced=False), built(mixer)
    assert in_order(plain) == []
    assert in_order(folded) == ["input_layernorm", "post_attention_layernorm"]
    assert len(gathering(plain)) == 3
    assert gathering(folded) == [f"{mixer}.{'out_proj' if mixer == 'linear_attn' else 'o_proj'}"]
    x, rest = inputs()
    (before, rest_before), (after, rest_after) = (
        layer(x, rest if residual else None) for layer in (plain, folded)
    )
    assert torch.equal(rest_after, rest_before)
    assert after.keys() == before.keys()
    for name, value in after.items():
        if name == "in_proj_ba":  # the same products, in another order
            assert torch.allclose(value.float(), before[name].float(), rtol=2**-7, atol=2**-5)
        else:
            assert torch.equal(value, before[name])


def test_in_proj_ba_is_permuted_with_its_norm_and_only_then() -> None:
    weights = {}
    for fold in (True, False):
        config = act_order_config()
        model = Decoder(config, "linear_attn")
        model.load()
        if fold:
            norms.fold_norms(model, torch.device("cpu"))
        weights[fold] = model.linear_attn.in_proj_ba.weight.data.clone()
    order = model.linear_attn.in_proj_qkvz.quant_method.order_for(model.linear_attn.in_proj_qkvz)
    assert torch.equal(weights[True], weights[False][:, order])
    assert not torch.equal(weights[True], weights[False])


def _another_order(layer: Any) -> None:
    prefix = "model.layers.0.linear_attn.in_proj_ba"
    config = act_order_config()
    config.siblings = layer.linear_attn.in_proj_qkvz.quant_method.siblings
    layer.linear_attn.in_proj_ba = Layer(config, prefix, HIDDEN, [32])
    layer.linear_attn.in_proj_ba.load(77)


def _one_more_reader(layer: Any) -> None:
    layer.linear_attn.in_proj_gate = Plain(HIDDEN, 32, 3)


def _no_ba(layer: Any) -> None:
    del layer.linear_attn.in_proj_ba


def _another_norm(layer: Any) -> None:
    class Norm(type(layer.input_layernorm)):  # type: ignore[misc]
        pass

    layer.input_layernorm.__class__ = Norm


def _packed_ba(layer: Any) -> None:
    finish(layer.linear_attn.in_proj_ba)


def _finished(layer: Any) -> None:
    finish(layer.linear_attn.in_proj_qkvz)


@pytest.mark.parametrize(
    "change", [_another_order, _one_more_reader, _no_ba, _another_norm, _packed_ba, _finished]
)
def test_a_norm_with_a_reader_that_cannot_follow_stays_as_it_is_and_the_others_do_not(
    change: Callable[[Any], None],
) -> None:
    layer = built("linear_attn", change)
    assert in_order(layer) == ["post_attention_layernorm"]
    assert "linear_attn.in_proj_qkvz" in gathering(layer)
    assert "mlp.gate_up_proj" not in gathering(layer)


@pytest.mark.parametrize("switch", ["cuda", "never"])
def test_nothing_is_folded_on_a_cpu_or_where_it_is_switched_off(
    switch: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(claim, "FOLD_NORMS", switch)
    assert in_order(built("self_attn")) == []
    on_gpu = method._norms_fold(torch.device("cuda", 0))
    assert on_gpu is (switch == "cuda")


def test_nothing_is_folded_under_lora(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(method, "_has_lora", lambda: True)
    layer = built("linear_attn")
    assert in_order(layer) == []
    assert len(gathering(layer)) == 4  # down_proj too


def test_natural_order_leaves_the_norms_alone() -> None:
    layer = built("linear_attn", permuted=False)
    assert in_order(layer) == []
    assert gathering(layer) == []


def test_a_layer_of_another_class_is_left_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    stock = norms.decoder_classes()
    monkeypatch.setattr(norms, "decoder_classes", lambda: (torch.nn.Identity, stock[1]))
    assert in_order(built("self_attn")) == []


def test_a_vllm_whose_decoder_layer_has_changed_is_served_with_gathers(
    monkeypatch: pytest.MonkeyPatch, shown: Shown
) -> None:
    def changed() -> Any:
        raise CompatError("the decoder layer is gone")

    monkeypatch.setattr(norms, "decoder_classes", changed)
    layer = built("self_attn")
    assert in_order(layer) == []
    assert "self_attn.qkv_proj" in gathering(layer)
    assert "every linear permutes its input, as the decoder layer is gone" in shown()


def test_vllms_decoder_layer_is_what_the_fold_expects() -> None:
    from vllm_qwen36_plugin.upstream.decoder import decoder_classes

    layer, norm = decoder_classes()
    source = inspect.getsource(layer.__init__)
    assert all(f"self.{block.name}" in source and f"self.{block.norm}" in source for block in norms._BLOCKS)
    assert list(inspect.signature(norm.forward_native).parameters) == ["self", "x", "residual"]
