"""The linear method on vLLM's own classes, no engine: sorted weights, permuted inputs, what is refused."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("vllm")

from gptq_hybrid.packing import natural_g_idx  # noqa: E402
from tests.act_order.layers import GROUP, HIDDEN, INNER, Layer, act_order_config  # noqa: E402
from tests.act_order.layers import one_rank as build_on_one_rank  # noqa: E402
from vllm_qwen36_plugin.errors import ActOrderError  # noqa: E402

pytestmark = pytest.mark.engine  # no engine, but vLLM's linears are imported: some seconds


@pytest.fixture(autouse=True)
def one_rank() -> Iterator[None]:
    with build_on_one_rank():
        yield


@pytest.fixture
def config() -> Any:
    return act_order_config()


def mlp(config: Any, prefix: str = "model.layers.0.mlp") -> tuple[Layer, Layer]:
    return (
        Layer(config, f"{prefix}.gate_up_proj", HIDDEN, [INNER, INNER]),
        Layer(config, f"{prefix}.down_proj", INNER, [HIDDEN]),
    )


def run(gate_up: Any, down: Any, x: torch.Tensor) -> torch.Tensor:
    gate, up = gate_up(x).chunk(2, dim=-1)
    return down(torch.nn.functional.silu(gate) * up)


def assert_same_mlp(gate_up: Layer, down: Layer, dense: tuple[torch.Tensor, torch.Tensor]) -> None:
    x = torch.randn(7, HIDDEN, generator=torch.Generator().manual_seed(9)).bfloat16()
    first, second = (weight.bfloat16().T for weight in dense)
    expected = run(lambda v: v @ first, lambda v: v @ second, x).float()
    assert torch.allclose(run(gate_up, down, x).float(), expected, rtol=0, atol=0.02 * expected.abs().max())


def test_one_linear_gives_what_its_dequantized_weights_give(config: Any) -> None:
    layer = Layer(config, "model.layers.0.linear_attn.out_proj", INNER, [HIDDEN])
    dense = layer.load(1)
    layer.finish()
    x = torch.randn(5, INNER, generator=torch.Generator().manual_seed(2)).bfloat16()
    expected = (x.double() @ dense.bfloat16().double().T).float()
    assert torch.allclose(layer(x).float(), expected, rtol=2**-7, atol=2**-7 * float(expected.abs().max()))
    assert sorted(layer.act_order.tolist()) == list(range(INNER))
    assert not hasattr(layer, "g_idx")


def test_the_order_of_down_is_folded_into_gate_up(config: Any) -> None:
    gate_up, down = mlp(config)
    dense = gate_up.load(1), down.load(2)
    gate_up.finish()
    down.finish()
    assert down.quant_method.folded
    assert down.act_order is None
    assert gate_up.act_order is not None
    assert_same_mlp(gate_up, down, dense)


def test_a_down_that_is_finished_first_permutes_at_run_time(config: Any) -> None:
    gate_up, down = mlp(config)
    dense = gate_up.load(1), down.load(2)
    down.finish()
    gate_up.finish()
    assert not down.quant_method.folded
    assert down.act_order is not None
    assert_same_mlp(gate_up, down, dense)


def test_nothing_is_folded_under_lora_whose_matrices_are_in_the_old_order(
    config: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    from vllm_qwen36_plugin.act_order import method

    monkeypatch.setattr(method, "_has_lora", lambda: True)
    gate_up, down = mlp(config)
    dense = gate_up.load(1), down.load(2)
    gate_up.finish()
    down.finish()
    assert down.act_order is not None
    assert_same_mlp(gate_up, down, dense)


def test_weights_for_a_running_engine_are_refused(config: Any) -> None:
    """vLLM's reload does layer after layer: `down_proj` may have lost its order to `gate_up_proj`, or not yet."""
    layer = Layer(config, "model.layers.0.self_attn.o_proj", INNER, [HIDDEN])
    loader = layer.g_idx.weight_loader
    layer.load(1)
    layer.finish()
    assert loader.__name__
    fresh = torch.nn.Parameter(torch.zeros(INNER, dtype=torch.int32), requires_grad=False)
    with pytest.raises(ActOrderError, match=r"o_proj.*running engine.*start the engine again"):
        loader(fresh, torch.zeros(INNER, dtype=torch.int32), 0)


@pytest.mark.parametrize(
    ("name", "step"), [("qkv_proj", 2), ("gate_up_proj", 2), ("in_proj_qkvz", 1), ("o_proj", 1)]
)
def test_the_order_is_read_as_its_producer_s_kernel_likes_it(config: Any, name: str, step: int) -> None:
    layer = Layer(config, f"model.layers.0.mixer.{name}", INNER, [HIDDEN])
    dense = layer.load(1)
    layer.finish()
    assert layer.act_order.stride() == (step,)
    address = layer.act_order.data_ptr()
    layer.quant_method._store_order(layer, layer.act_order.clone())
    assert layer.act_order.data_ptr() == address
    x = torch.randn(2, 3, INNER, generator=torch.Generator().manual_seed(2)).bfloat16()
    expected = x.float() @ dense.bfloat16().float().T
    assert torch.allclose(layer(x).float(), expected, rtol=0, atol=0.02 * expected.abs().max())


def test_two_layers_do_not_take_each_others_down(config: Any) -> None:
    pairs = [mlp(config, f"model.layers.{i}.mlp") for i in range(2)]
    dense = [(a.load(2 * i), b.load(2 * i + 1)) for i, (a, b) in enumerate(pairs)]
    for pair in pairs:
        for layer in pair:
            layer.finish()
    for pair, weights in zip(pairs, dense, strict=True):
        assert_same_mlp(*pair, weights)


def test_natural_order_costs_nothing(config: Any) -> None:
    gate_up, down = mlp(config)
    dense = gate_up.load(1, permuted=False), down.load(2, permuted=False)
    gate_up.finish()
    down.finish()
    assert gate_up.act_order is None
    assert down.act_order is None
    assert_same_mlp(gate_up, down, dense)


def test_parts_of_a_fused_layer_that_differ_are_refused_by_name(config: Any) -> None:
    gate_up, _ = mlp(config)
    gate_up.load(1)
    other = natural_g_idx(HIDDEN, GROUP).flip(0)
    with pytest.raises(ActOrderError, match=r"layers\.0\.mlp\.gate_up_proj: its parts differ in g_idx"):
        gate_up.g_idx.weight_loader(gate_up.g_idx, other, 1)


def test_a_g_idx_of_another_length_is_refused(config: Any) -> None:
    _, down = mlp(config)
    with pytest.raises(ActOrderError, match=r"down_proj: g_idx has 64 entries for 128 input rows"):
        down.g_idx.weight_loader(down.g_idx, natural_g_idx(HIDDEN, GROUP))


def test_a_checkpoint_without_g_idx_is_refused(config: Any) -> None:
    _, down = mlp(config)
    with pytest.raises(ActOrderError, match=r"down_proj: the checkpoint has no g_idx"):
        down.finish()


def test_groups_of_uneven_size_are_refused(config: Any) -> None:
    _, down = mlp(config)
    down.load(1)
    down.g_idx.data[0] = (down.g_idx.data[0] + 1) % 4
    with pytest.raises(ActOrderError, match=r"down_proj\.g_idx is no act order: group \d has 3[13] of 128"):
        down.finish()


def test_vllm_asks_for_the_method_and_gets_ours_for_packed_linears_alone(config: Any) -> None:
    from vllm.model_executor.layers import linear

    from vllm_qwen36_plugin.act_order.method import ActOrderLinearMethod

    config.modules_in_block_to_quantize = ["mlp.down_proj"]
    made = linear.ReplicatedLinear.__new__(linear.ReplicatedLinear)
    torch.nn.Module.__init__(made)
    packed = config.get_quant_method(made, "model.layers.0.mlp.down_proj")
    assert type(packed) is ActOrderLinearMethod
    assert config.siblings.find("model.layers.0.mlp.down_proj") is made
    plain = config.get_quant_method(made, "model.layers.0.linear_attn.in_proj_ba")
    assert type(plain) is linear.UnquantizedLinearMethod
