"""What torch.compile sees of act order: whole graphs, of ops that vLLM's passes can take."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("vllm")

from tests.act_order.layers import HIDDEN, INNER, Layer, act_order_config  # noqa: E402
from tests.act_order.layers import one_rank as build_on_one_rank  # noqa: E402
from vllm_qwen36_plugin.act_order.norm import NormInOrder, reference  # noqa: E402

pytestmark = pytest.mark.engine  # no engine, but vLLM's linears are imported: some seconds


@pytest.fixture(autouse=True)
def one_rank() -> Iterator[None]:
    with build_on_one_rank():
        yield


def traced(function: Any, *inputs: torch.Tensor) -> tuple[list[Any], Any]:
    """Ops of the one graph that Dynamo makes, with a symbol for the rows, and what the graph returned."""
    graphs: list[torch.fx.GraphModule] = []

    def keep(graph: torch.fx.GraphModule, _: Any) -> Any:
        graphs.append(graph)
        return graph.forward

    torch._dynamo.reset()
    for tensor in inputs:
        torch._dynamo.mark_dynamic(tensor, 0)
    with torch.inference_mode():
        result = torch.compile(function, backend=keep, fullgraph=True)(*inputs)
    (graph,) = graphs
    targets = [node.target for node in graph.graph.nodes if node.op == "call_function"]
    return [target for target in targets if type(target).__module__ == "torch._ops"], result


def test_the_gather_is_an_overload_which_is_what_vllm_0_26_can_look_up() -> None:
    """Its pass asks `overload_or_default`, and `aten._unsafe_index` has no default overload."""
    layer = Layer(act_order_config(), "model.layers.0.self_attn.o_proj", INNER, [HIDDEN])
    dense = layer.load(1)
    layer.finish()
    x = torch.randn(3, INNER).bfloat16()
    targets, product = traced(layer, x)
    assert torch.ops.aten._unsafe_index.Tensor in targets
    assert [target for target in targets if not isinstance(target, torch._ops.OpOverload)] == []
    expected = x.float() @ dense.bfloat16().float().T
    assert torch.allclose(product.float(), expected, rtol=0, atol=0.02 * float(expected.abs().max()))


@pytest.mark.parametrize("add", [True, False])
def test_a_norm_in_order_is_one_op_of_the_graph(add: bool) -> None:
    generator = torch.Generator().manual_seed(3)
    x, residual = torch.randn(2, 3, HIDDEN, generator=generator).bfloat16()
    weight = torch.nn.Parameter(torch.randn(HIDDEN, generator=generator).bfloat16(), requires_grad=False)
    order = torch.randperm(HIDDEN, generator=generator)
    norm = NormInOrder(weight, 1e-6, order)
    targets, outputs = traced(norm, x, residual) if add else traced(norm, x)
    name = "add_norm_in_order" if add else "norm_in_order"
    assert targets == [getattr(torch.ops.qwen36, name).default]
    expected, total = reference(x, residual if add else None, weight, order, 1e-6)
    assert torch.equal(outputs[0] if add else outputs, expected)
    if add:
        assert torch.equal(outputs[1], total)


def test_the_ops_change_nothing_alias_nothing_and_say_what_they_return() -> None:
    weight = torch.nn.Parameter(torch.zeros(HIDDEN).bfloat16(), requires_grad=False)
    order = torch.randperm(HIDDEN).to(torch.int32)
    NormInOrder(weight, 1e-6, order)
    x = torch.randn(HIDDEN, 4).bfloat16().T  # strides that its results have not
    checks = ("test_schema", "test_faketensor")
    torch.library.opcheck(torch.ops.qwen36.norm_in_order.default, (x, weight, order, 1e-6), test_utils=checks)
    torch.library.opcheck(
        torch.ops.qwen36.add_norm_in_order.default, (x, x.clone(), weight, order, 1e-6), test_utils=checks
    )
