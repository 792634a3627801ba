"""The op that chooses by the number of tokens, and what torch.compile makes of it."""

from __future__ import annotations

import gc
import weakref
from collections import Counter
from contextlib import suppress
from dataclasses import replace
from typing import Any

import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("triton")
pytest.importorskip("vllm")

from vllm_qwen36_plugin.prefill import dispatch  # noqa: E402
from vllm_qwen36_plugin.prefill.profile import Starts  # noqa: E402
from vllm_qwen36_plugin.prefill.shape import Shape  # noqa: E402

from .made import DenseKernel, Weight  # noqa: E402

pytestmark = [
    pytest.mark.engine,  # no engine, but vLLM is imported: some seconds
    pytest.mark.usefixtures("clean"),
]

SHAPE = Shape("marlin", 64, 128, 4, -1, "bfloat16")


class Layer(torch.nn.Module):  # type: ignore[misc]
    """A linear as a stock kernel leaves it, called as `PrefillLinearKernel` calls it."""

    names = ("scales", "words")

    def __init__(self, seed: int = 0) -> None:
        super().__init__()
        weight = Weight.random(SHAPE, seed)
        self.dense = weight.dense().bfloat16()
        self.words = torch.nn.Parameter(weight.stock_words(), requires_grad=False)
        self.register_buffer("scales", weight.stock_scales())
        self.input_global_scale = None
        self.seed = seed
        self.op = dispatch.op()  # before anything is traced, as the kernel does

    def forward(
        self, x: torch.Tensor, bias: torch.Tensor | None = None, fp8: torch.Tensor | None = None
    ) -> torch.Tensor:
        tensors = [getattr(self, name) for name in self.names]
        return self.op(x, tensors, fp8, bias, SHAPE.key, SHAPE.n)


class Route:
    """Takes a route's place: the same product, counted."""

    def __init__(self) -> None:
        self.calls: list[int] = []
        self.weights: list[Any] = []
        self.gemms: list[str] = []

    def __call__(
        self, x: torch.Tensor, weight: Any, shape: Shape, gemm: str = "", out: torch.Tensor | None = None
    ) -> torch.Tensor:
        self.gemms += [gemm] * bool(gemm)
        assert x.is_contiguous()
        self.calls.append(x.shape[0])
        self.weights.append(weight)
        result = DenseKernel(shape).apply_weights(weight, x)
        return result if out is None else out.copy_(result)


@pytest.fixture
def exact(monkeypatch: pytest.MonkeyPatch) -> Route:
    route = Route()
    monkeypatch.setattr(dispatch, "exact", route)
    return route


@pytest.fixture
def fp8(monkeypatch: pytest.MonkeyPatch) -> Route:
    route = Route()
    monkeypatch.setattr(dispatch, "fp8", route)
    return route


def entered(layer: Layer, **entry: Any) -> dispatch.Linear:
    names = ("scales", "words")
    kernel = entry.pop("kernel", DenseKernel(SHAPE))
    linear = dispatch.Linear(SHAPE, kernel, names, 1, 0, weakref.ref(layer), **entry)
    return dispatch.put(linear)


def activations(count: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(count, SHAPE.k, generator=torch.Generator().manual_seed(seed)).bfloat16()


@pytest.mark.parametrize(
    ("starts", "order", "taken"),
    [
        (Starts(), (), {1: None, 9999: None}),
        (Starts(64, 64), (), {1: None, 9999: None}),
        (Starts(), ("fp8", "exact"), {1: None, 9999: None}),
        (Starts(64), ("exact",), {1: None, 63: None, 64: "exact", 9999: "exact"}),
        (Starts(64, 32), ("exact",), {63: None, 64: "exact"}),
        (Starts(64, 256), ("fp8", "exact"), {63: None, 64: "exact", 255: "exact", 256: "fp8"}),
        (Starts(256, 64), ("fp8", "exact"), {63: None, 64: "fp8", 9999: "fp8"}),
        (Starts(None, 64), ("fp8", "exact"), {63: None, 64: "fp8"}),
        (Starts(64, None), ("fp8", "exact"), {63: None, 64: "exact"}),
    ],
)
def test_the_route_wanted_most_of_those_that_have_started_is_taken(
    starts: Starts, order: tuple[Any, ...], taken: dict[int, str | None]
) -> None:
    linear = entered(Layer(), starts=starts, routes=order)
    assert {count: linear.route_for(count) for count in taken} == taken


def test_one_graph_serves_every_number_of_tokens_and_every_table(exact: Route) -> None:
    from torch._dynamo.testing import CompileCounterWithBackend

    layer = Layer()
    kernel = DenseKernel(SHAPE)
    linear = entered(layer, kernel=kernel, starts=Starts(64), routes=("exact",))
    torch._dynamo.reset()
    counter = CompileCounterWithBackend("aot_eager")
    compiled = torch.compile(layer, backend=counter, fullgraph=True, dynamic=True)

    def run(count: int) -> None:
        x = activations(count)
        assert torch.equal(compiled(x), x @ layer.dense.t())

    for count in (5, 64, 63, 300, 2):
        run(count)
    assert (kernel.calls, exact.calls) == ([5, 63, 2], [64, 300])
    linear.starts = Starts(300)  # as of another profile
    run(299)
    run(300)
    linear.routes = ()
    run(300)
    linear.routes, linear.starts = ("exact",), Starts(2)
    run(2)
    assert (kernel.calls[3:], exact.calls[2:]) == ([299, 300], [300, 2])
    other = entered(layer, starts=Starts(), routes=("exact",))  # as when a model is loaded again
    run(300)
    assert other.kernel.calls == [300]
    assert counter.frame_count == 1
    assert linear.served == {"stock": 5, "exact": 4}
    assert other.served == {"stock": 1}


def test_the_graph_holds_the_shapes_name_and_no_number_of_tokens(exact: Route) -> None:
    layer = Layer()
    entered(layer, starts=Starts(64), routes=("exact",))
    graphs: list[Any] = []

    def keep(graph: Any, _: Any) -> Any:
        graphs.append(graph)
        return graph

    torch._dynamo.reset()
    torch.compile(layer, backend=keep, fullgraph=True, dynamic=True)(activations(70))
    (graph,) = graphs
    (call,) = [node for node in graph.graph.nodes if "w4a16" in str(node.target)]
    constants = [argument for argument in call.args if isinstance(argument, (int, str))]
    assert constants == [SHAPE.key, SHAPE.n]


def test_the_op_keeps_torchs_rules_for_ops(exact: Route) -> None:
    layer = Layer()
    entered(layer, starts=Starts(64), routes=("exact",))
    tensors = [layer.scales, layer.words.data]
    checks = ("test_schema", "test_faketensor", "test_aot_dispatch_dynamic")
    for x in (activations(3), activations(70)):
        arguments = (x, tensors, None, None, SHAPE.key, SHAPE.n)
        torch.library.opcheck(torch.ops.qwen36.w4a16_linear.default, arguments, test_utils=checks)
    assert exact.calls


def plain_layer(seed: int = 0) -> tuple[Layer, Any]:
    """A layer whose words come first, and what it returns by the op that takes them and the scales alone."""
    layer, op = Layer(seed), dispatch.plain_op()

    def forward(x: torch.Tensor, fp8: torch.Tensor | None = None) -> torch.Tensor:
        return op(x, layer.words, layer.scales, fp8, SHAPE.key, SHAPE.n)

    return layer, forward


def entered_plain(layer: Layer, **entry: Any) -> dispatch.Linear:
    linear = dispatch.Linear(
        SHAPE, DenseKernel(SHAPE), ("words", "scales"), 0, 1, weakref.ref(layer), **entry
    )
    return dispatch.put(linear)


def test_words_and_scales_alone_have_an_op_without_a_list() -> None:
    layer = Layer()
    assert entered_plain(layer).plain
    assert not entered(layer).plain  # scales first
    names = ("words", "scales", "g_idx")
    assert not dispatch.Linear(SHAPE, None, names, 0, 1, weakref.ref(layer)).plain


def test_the_plain_op_goes_the_same_ways_and_counts_them(exact: Route, fp8: Route) -> None:
    layer, forward = plain_layer()
    linear = entered_plain(layer, starts=Starts(64, 128), routes=("fp8", "exact"))
    called: list[int] = []
    dispatch.at_next_call(lambda: called.append(1))
    scales = torch.ones(2, SHAPE.n)
    wide = torch.cat([activations(200), activations(200, 1)], dim=1)
    for count in (63, 64, 200):
        x = wide[:count, : SHAPE.k]
        assert torch.equal(forward(x, scales), x @ layer.dense.t())
    assert linear.served == {"stock": 1, "exact": 1, "fp8": 1}
    assert (linear.kernel.calls, exact.calls, fp8.calls) == ([63], [64], [200])
    assert fp8.weights[0].fp8.data_ptr() == scales.data_ptr()
    assert exact.weights[0].words.data_ptr() == layer.words.data_ptr()
    assert called == [1]


def test_the_plain_op_is_one_graph_too_and_keeps_torchs_rules(exact: Route) -> None:
    from torch._dynamo.testing import CompileCounterWithBackend

    layer, forward = plain_layer()
    linear = entered_plain(layer, starts=Starts(64), routes=("exact",))
    torch._dynamo.reset()
    counter = CompileCounterWithBackend("aot_eager")
    compiled = torch.compile(forward, backend=counter, fullgraph=True, dynamic=True)
    for count in (5, 64, 63, 300):
        x = activations(count)
        assert torch.equal(compiled(x), x @ layer.dense.t())
    assert counter.frame_count == 1
    assert linear.served == {"stock": 2, "exact": 2}
    for x in (activations(3), activations(70)):
        arguments = (x, layer.words.data, layer.scales, None, SHAPE.key, SHAPE.n)
        torch.library.opcheck(
            torch.ops.qwen36.w4a16_plain.default,
            arguments,
            test_utils=("test_schema", "test_faketensor", "test_aot_dispatch_dynamic"),
        )


def test_asking_for_an_op_twice_registers_it_once() -> None:
    assert dispatch.op() is dispatch.op()
    assert dispatch.plain_op() is dispatch.plain_op()
    assert dispatch.plain_op() is not dispatch.op()


def test_a_bias_goes_to_the_stock_kernel_which_permutes_it(exact: Route) -> None:
    layer = Layer()
    linear = entered(layer, starts=Starts(1), routes=("exact",))
    x, bias = activations(100), activations(2).reshape(-1)
    assert torch.equal(layer(x, bias), x @ layer.dense.t() + bias)
    assert (linear.kernel.calls, exact.calls) == ([100], [])


def test_a_route_gets_the_calls_own_weight_and_contiguous_tokens(exact: Route, fp8: Route) -> None:
    first, second = Layer(1), Layer(2)
    entered(second, starts=Starts(64, 128, "torch"), routes=("fp8", "exact"))
    wide = torch.cat([activations(200), activations(200, 1)], dim=1)
    for layer in (first, second):
        for count in (64, 200):
            x = wide[:count, : SHAPE.k]
            assert torch.equal(layer(x, fp8=torch.ones(2, SHAPE.n)), x @ layer.dense.t())
    assert (exact.calls, fp8.calls) == ([64, 64], [200, 200])
    assert (exact.gemms, fp8.gemms) == ([], ["torch", "torch"])
    scales = torch.ones(2, SHAPE.n)
    dispatch.op()(activations(128), [first.scales, first.words], scales, None, SHAPE.key, SHAPE.n)
    assert fp8.weights[-1].fp8.data_ptr() == scales.data_ptr()
    assert fp8.weights[0].fp8 is not None


class Nosy(DenseKernel):
    """Reads what it is shown while it is shown it."""

    def apply_weights(self, layer: Any, x: torch.Tensor, bias: torch.Tensor | None = None) -> torch.Tensor:
        self.observed = (
            layer.words.data_ptr(),
            layer.scales.data_ptr(),
            layer.input_global_scale,
            layer.seed,
        )
        self.lacks = not hasattr(layer, "zero_points")
        return super().apply_weights(layer, x, bias)


def test_a_stock_kernel_sees_the_calls_tensors_and_the_rest_of_one_real_layer() -> None:
    """Layers of a shape share an entry; what is no tensor is the same for all of them."""
    first, second = Layer(1), Layer(2)
    kernel = Nosy(SHAPE)
    entered(second, kernel=kernel)
    x = activations(3)
    for layer in (first, second):
        assert torch.equal(layer(x), x @ layer.dense.t())
        assert kernel.observed == (layer.words.data_ptr(), layer.scales.data_ptr(), None, 2)
        assert kernel.lacks


def test_an_entry_keeps_no_model_alive() -> None:
    layer = Layer()
    linear = entered(layer)
    tensors = [layer.scales, layer.words.data]
    del layer
    gc.collect()
    assert linear.layer() is None
    assert linear.stock(activations(3), tensors).shape == (3, SHAPE.n)  # needs its tensors alone
    linear.kernel = Nosy(SHAPE)
    with pytest.raises(AttributeError, match="input_global_scale"):
        linear.stock(activations(3), tensors)


def test_a_parameter_that_holds_its_layer_is_asked_for_again() -> None:
    """As vLLM's do; a stock kernel may look at zero points that symmetric weights do not have."""
    layer = Layer()
    layer.zero_points = torch.nn.Parameter(torch.empty(0), requires_grad=False)
    layer.zero_points.weight_loader = layer.forward

    class Looking(DenseKernel):
        def apply_weights(
            self, layer: Any, x: torch.Tensor, bias: torch.Tensor | None = None
        ) -> torch.Tensor:
            self.observed = (layer.zero_points, layer.seed)
            return super().apply_weights(layer, x, bias)

    kernel = Looking(SHAPE)
    linear = entered(layer, kernel=kernel)
    for _ in range(2):
        layer(activations(3))
        assert kernel.observed == (layer.zero_points, 0)
    assert linear.attributes == {"seed": 0}
    kernel.observed, kernel.layers = (None, None), []
    gone = weakref.ref(layer)
    del layer
    gc.collect()
    assert gone() is None


def test_tensors_that_do_not_match_their_names_are_an_error() -> None:
    layer = Layer()
    linear = entered(layer)
    with pytest.raises(ValueError, match="zip"):
        linear.stock(activations(3), [layer.scales])


def test_what_waits_for_the_next_call_is_called_once() -> None:
    layer = Layer()
    entered(layer)
    called: list[str] = []

    def callback() -> None:
        called.append("first")

    dispatch.at_next_call(callback)
    dispatch.at_next_call(callback)
    dispatch.at_next_call(lambda: called.append("second"))
    assert called == []
    layer(activations(3))
    assert sorted(called) == ["first", "second"]
    layer(activations(3))
    assert len(called) == 2
    dispatch.at_next_call(callback)  # the table has changed again
    layer(activations(3))
    assert len(called) == 3


def test_a_trial_is_not_the_next_call() -> None:
    layer = Layer()
    entered(layer)
    called: list[str] = []
    dispatch.at_next_call(lambda: called.append("called"))
    with suppress(KeyError), dispatch.trial():
        layer(activations(3))
        raise KeyError  # what a trial is for: it fails
    assert called == []
    layer(activations(3))
    assert called == ["called"]


def test_the_table_is_by_name() -> None:
    layer = Layer()
    linear = entered(layer)
    other = dispatch.put(
        dispatch.Linear(Shape("machete", 64, 128, 4, -1, "bfloat16"), None, ("a",), 0, 0, weakref.ref(layer))
    )
    assert dispatch.get(SHAPE.key) is linear
    assert dispatch.get("marlin 1x1 w4 g-1 bfloat16") is None
    assert dispatch.linears() == [other, linear]
    dispatch.clear()
    assert dispatch.linears() == []


def test_a_linear_can_stand_under_another_key_and_is_then_called_by_it() -> None:
    layer = Layer()
    usual = entered(layer)
    other = dispatch.put(replace(usual, served=Counter()), key="another")
    x = activations(3)
    dispatch.op()(x, [layer.scales, layer.words], None, None, "another", SHAPE.n)
    assert (usual.served, other.served) == ({}, {"stock": 1})
    assert dispatch.get("another") is other
    assert dispatch.get(SHAPE.key) is usual


def test_what_waits_is_dropped_with_the_table() -> None:
    layer = Layer()
    called: list[str] = []
    dispatch.at_next_call(lambda: called.append("called"))
    dispatch.clear()
    entered(layer)
    layer(activations(3))
    assert called == []
