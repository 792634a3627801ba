"""What becomes of a layer that the kernel has loaded, compiled, and loaded again."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager
from types import SimpleNamespace
from typing import Any

import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("triton")
pytest.importorskip("vllm")

from vllm_qwen36_plugin.prefill import dispatch, scratch  # noqa: E402
from vllm_qwen36_plugin.prefill.profile import Starts  # noqa: E402
from vllm_qwen36_plugin.prefill.shape import Shape  # noqa: E402

from .fake_gpu import FakeGpu  # noqa: E402
from .made import Weight, same  # noqa: E402
from .stock import (  # noqa: E402
    MACHETE,
    SHAPE,
    Layer,
    activations,
    entry,
    load_into,
)

pytestmark = pytest.mark.engine  # no engine, but vLLM's linears are imported: some seconds

Shown = Callable[[], str]
Serving = Callable[..., AbstractContextManager[None]]


@pytest.mark.parametrize("transposed", [False, True], ids=["gptq", "compressed-tensors"])
@pytest.mark.parametrize(("shape", "name"), [(SHAPE, "MarlinLinearKernel"), (MACHETE, "MacheteLinearKernel")])
def test_a_loaded_layer_gives_the_product_by_every_way(
    serving: Serving, stock_is: Any, shown: Shown, shape: Shape, name: str, transposed: bool
) -> None:
    stock_is(name)
    with serving(prefill="fp8"):
        layer = Layer(shape).load(transposed=transposed)
    linear = entry(layer)
    assert shown() == ""
    assert (linear.routes, linear.starts) == (("fp8", "exact"), Starts(512, 256))
    assert linear.names == ("qweight", "scales")
    assert linear.kernel is layer.kernel.stock
    assert linear.layer() is layer
    assert scratch.reserved(torch.device("cpu")) == shape.k * shape.n * 2
    linear.starts = Starts(64, 128)
    for count, route, most in ((63, "stock", 0.01), (64, "exact", 0.01), (128, "fp8", 0.06)):
        x = activations(count)
        result, expected = layer(x).float(), x.float() @ layer.dense.float().t()
        assert float((result - expected).norm() / expected.norm()) < most
        assert linear.served[route] == 1


def test_a_layer_keeps_no_scales_if_its_shape_takes_no_fp8(
    serving: Serving, stock_is: Any, gpu: FakeGpu
) -> None:
    with serving(prefill="fp8", tokens=128):  # beyond which it would win
        layers = [Layer(SHAPE), Layer(SHAPE)]
        for layer in layers:
            layer.load()
    assert not any(hasattr(layer, "qwen36_fp8_scales") or layer.kernel.has_fp8 for layer in layers)
    assert scratch.reserved(torch.device("cpu")) == 0
    x = activations(300)
    result, expected = layers[1](x).float(), x.float() @ layers[1].dense.float().t()
    assert float((result - expected).norm() / expected.norm()) < 0.01
    assert entry(layers[1]).served == {"stock": 1}


def test_scratch_leaves_room_for_the_fp8_scales_of_every_layer_that_was_built(
    serving: Serving, stock_is: Any
) -> None:
    count = (1 << 20) // 4 // (SHAPE.n * 8)
    with serving(prefill="fp8", prefill_scratch_mib=1):
        layers = [Layer(SHAPE) for _ in range(count)]
        wide = Layer(Shape("marlin", 256, 4096, 4, 32, "bfloat16")).load()
        layers[0].load()
    scales = sum(layer.kernel.shape.n * 8 for layer in (*layers, wide))
    assert 0 < scratch.reserved(torch.device("cpu")) <= (1 << 20) - scales


def test_tokens_in_more_dimensions_count_together(serving: Serving, stock_is: Any) -> None:
    with serving():
        layer = Layer(SHAPE).load()
    linear = entry(layer)
    linear.starts = Starts(64)
    for shape, route in (
        ((8, 8), "exact"),
        ((2, 4, 8), "exact"),
        ((7, 9), "stock"),
        ((), "stock"),
        ((0,), "stock"),
    ):
        x = torch.randn(*shape, SHAPE.k).bfloat16()
        linear.served.clear()
        result = layer(x)
        assert result.shape == (*shape, SHAPE.n)
        assert linear.served == {route: 1}, shape
        assert torch.allclose(result.float(), (x @ layer.dense.t()).float(), atol=0.05)


def test_a_bias_is_added_by_the_stock_kernel_that_permuted_it(serving: Serving, stock_is: Any) -> None:
    with serving(prefill="exact"):
        layer = Layer(SHAPE, bias=True).load()
    linear = entry(layer)
    linear.starts = Starts(1)
    x = activations(100)
    assert torch.equal(layer(x), x @ layer.dense.t() + torch.arange(SHAPE.n).bfloat16())
    assert linear.served == {"stock": 1}
    assert "bias" not in linear.names


def test_an_order_of_the_input_is_not_the_kernels_business(serving: Serving, stock_is: Any) -> None:
    """`act_order` is applied before, and not every layer of a shape has one."""
    with serving():
        first, second = Layer(SHAPE), Layer(SHAPE)
        first.register_buffer("act_order", torch.arange(SHAPE.k), persistent=False)
        first.load(1)
        second.load(2)
    for layer in (first, second):
        assert layer.kernel.names == ["qweight", "scales"]
        assert torch.equal(layer(activations(3)), activations(3) @ layer.dense.t())


def test_groups_in_order_need_no_g_idx_though_a_layer_may_have_one(serving: Serving, stock_is: Any) -> None:
    """Up to vLLM 0.29 it is there, and Machete leaves it there."""
    with serving():
        layer = Layer(SHAPE)
        layer.g_idx = torch.nn.Parameter(torch.arange(SHAPE.k, dtype=torch.int32), requires_grad=False)
        layer.kernel.w_gidx_name = "g_idx"
        layer.load(1)
    assert layer.kernel.names == ["qweight", "scales"]
    assert entry(layer).plain
    assert torch.equal(layer(activations(3)), activations(3) @ layer.dense.t())


def test_layers_of_a_shape_are_tested_and_measured_once_and_each_keeps_its_weight(
    serving: Serving, stock_is: Any, gpu: FakeGpu
) -> None:
    with serving(prefill="fp8"):
        layers = [Layer(SHAPE).load(seed) for seed in range(3)]
        other = Layer(Shape("marlin", 128, 128, 4, 32, "bfloat16")).load()
    assert [shape for shape, _, _ in gpu.measured] == [SHAPE, other.shape]
    entry(other).starts = entry(layers[0]).starts = Starts(64, 128)
    for count in (3, 70, 200):
        for layer in (*layers, other):
            result, expected = (
                layer(activations(count)).float(),
                activations(count).float() @ layer.dense.float().t(),
            )
            assert float((result - expected).norm() / expected.norm()) < 0.06
    assert entry(layers[0]).served == {"stock": 3, "exact": 3, "fp8": 3}


def test_compiled_without_a_graph_break_and_once_for_all_numbers_of_tokens(
    serving: Serving, stock_is: Any
) -> None:
    from torch._dynamo.testing import CompileCounterWithBackend

    with serving(prefill="fp8"):
        layers = torch.nn.Sequential(
            Layer(Shape("marlin", 128, 128, 4, 32, "bfloat16")).load(1), Layer(SHAPE).load(2)
        )
    for linear in dispatch.linears():
        linear.starts = Starts(64, 128)
    torch._dynamo.reset()
    counter = CompileCounterWithBackend("aot_eager")
    compiled = torch.compile(layers, backend=counter, fullgraph=True, dynamic=True)
    for count in (3, 63, 64, 127, 128, 300):
        assert torch.equal(compiled(activations(count)), layers(activations(count)))
    for linear in dispatch.linears():
        assert linear.served == {"stock": 4, "exact": 4, "fp8": 4}
        linear.starts = Starts()
    assert torch.equal(compiled(activations(300)), layers(activations(300)))
    assert counter.frame_count == 1


@pytest.mark.parametrize("bias", [False, True])
def test_a_graph_calls_the_cheaper_op_wherever_there_is_no_bias(
    serving: Serving, stock_is: Any, bias: bool
) -> None:
    with serving(prefill="fp8"):
        layer = Layer(SHAPE, bias=bias).load()
    graphs: list[Any] = []

    def keep(graph: Any, _: Any) -> Any:
        graphs.append(graph)
        return graph

    torch._dynamo.reset()
    torch.compile(layer, backend=keep, fullgraph=True, dynamic=True)(activations(70))
    (graph,) = graphs
    calls = [node for node in graph.graph.nodes if node.op == "call_function"]
    (call,) = [node for node in calls if "w4a16" in str(node.target)]
    assert ("w4a16_plain" in str(call.target)) is not bias
    constants = [argument for argument in call.args if isinstance(argument, (int, str))]
    assert constants == [SHAPE.key, SHAPE.n]
    assert not [node for node in calls if "reshape" in str(node.target)]


def test_compiled_where_the_kernel_is_no_part_of_a_module_too(serving: Serving, stock_is: Any) -> None:
    """torch then takes its integers for symbols, under dynamic=True."""
    with serving():
        layers = [Layer(Shape("marlin", 128, n, 4, 32, "bfloat16")).load(n) for n in (128, 192)]
    kernels = SimpleNamespace(first=layers[0].kernel, second=layers[1].kernel)

    def both(x: torch.Tensor) -> torch.Tensor:
        return kernels.second.apply_weights(layers[1], kernels.first.apply_weights(layers[0], x))

    torch._dynamo.reset()
    compiled = torch.compile(both, backend="aot_eager", fullgraph=True, dynamic=True)
    for count in (3, 700):
        assert torch.equal(compiled(activations(count)), both(activations(count)))


def method_of(layer: Layer) -> Any:
    """What vLLM calls to have a layer's weights processed."""
    from vllm.model_executor.layers.quantization.base_config import QuantizeMethodBase

    class Method(QuantizeMethodBase):  # type: ignore[misc]
        def create_weights(self, *_: Any, **__: Any) -> None:
            raise NotImplementedError

        def apply(self, layer: Layer, x: torch.Tensor) -> torch.Tensor:
            return layer(x)

        def process_weights_after_loading(self, layer: Layer) -> None:
            layer.kernel.process_weights_after_loading(layer)

    return Method()


@pytest.mark.parametrize("mode", ["auto", "fp8"])
def test_weights_loaded_again_go_where_graphs_will_read_them(
    serving: Serving, stock_is: Any, gpu: FakeGpu, mode: str
) -> None:
    """By vLLM's own reload, which runs without a current config."""
    from vllm.model_executor.model_loader import reload

    with serving(prefill=mode, prefill_scratch_mib=1):
        layer = Layer(SHAPE)
        layer.quant_method = method_of(layer)
        load_into(layer, Weight.random(SHAPE, 1))
        reload.record_metadata_for_reloading(layer)
        layer.kernel.process_weights_after_loading(layer)
    linear = entry(layer)
    linear.starts = Starts(64, 128)
    before = {name: tensor.data_ptr() for name, tensor in (*layer.named_parameters(), *layer.named_buffers())}
    tile = scratch.tiles(torch.device("cpu"), SHAPE.k, SHAPE.n, torch.bfloat16)[0].dense
    assert ("qwen36_fp8_scales" in before) is (mode == "fp8")

    weight = Weight.random(SHAPE, 2)
    weight = Weight(SHAPE, weight.codes, weight.scales * 9)  # FP8 scales of the old weight would not do
    reload.initialize_layerwise_reload(layer)
    for name, loaded in (("qweight", weight.words()), ("scales", weight.scales)):
        parameter = getattr(layer, name)
        parameter.weight_loader(parameter, loaded)
    reload.finalize_layerwise_reload(layer, SimpleNamespace(dtype=torch.bfloat16))

    assert {name: t.data_ptr() for name, t in (*layer.named_parameters(), *layer.named_buffers())} == before
    assert same(layer.qweight.data.reshape(-1), weight.stock_words())
    assert scratch.tiles(torch.device("cpu"), SHAPE.k, SHAPE.n, torch.bfloat16)[0].dense is tile
    assert len(gpu.measured) == 1
    again = entry(layer)
    assert (again.starts, again.routes) == (linear.starts, linear.routes)
    for count in (3, 70, 200):
        result, expected = layer(activations(count)).float(), activations(count).float() @ weight.dense().t()
        assert float((result - expected).norm() / expected.norm()) < 0.06
    assert again.served["fp8" if mode == "fp8" else "exact"] > 0


def test_fp8_scales_are_replaced_in_place(serving: Serving, stock_is: Any) -> None:
    with serving(prefill="fp8"):
        layer = Layer(SHAPE).load(1)
        address, values = layer.qwen36_fp8_scales.data_ptr(), layer.qwen36_fp8_scales.clone()
        layer.load(2)
    assert layer.qwen36_fp8_scales.data_ptr() == address
    assert not torch.equal(layer.qwen36_fp8_scales, values)


def test_a_second_model_takes_the_firsts_place(serving: Serving, stock_is: Any, gpu: FakeGpu) -> None:
    with serving():
        old = Layer(SHAPE).load(1)
    with serving(prefill="fp8"):
        new = Layer(SHAPE).load(2)
    assert entry(new).layer() is new
    assert entry(new).routes == ("fp8", "exact")
    assert len(gpu.measured) == 2
    del old
    with serving(prefill="fp8"):
        third = Layer(SHAPE).load(3)
    assert len(gpu.measured) == 2
    assert torch.equal(third(activations(3)), activations(3) @ third.dense.t())
