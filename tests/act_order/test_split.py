"""The linear method on several ranks, each a thread of its own: what they hold, and what they compute together."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("vllm")

from gptq_hybrid.packing import dequantize, natural_g_idx, pack, quantize_rtn  # noqa: E402
from tests.act_order.layers import GROUP, HIDDEN, Layer, act_order_config  # noqa: E402
from tests.act_order.layers import one_rank as build_on_one_rank  # noqa: E402
from tests.ranks import Ranks  # noqa: E402
from vllm_qwen36_plugin.act_order import method as method_module  # noqa: E402
from vllm_qwen36_plugin.act_order import split as split_module  # noqa: E402
from vllm_qwen36_plugin.errors import ActOrderError  # noqa: E402

pytestmark = pytest.mark.engine  # no engine, but vLLM's linears are imported: some seconds

# Nine groups: over two and four ranks some have rows on both sides.
INNER = 288
OUT = "model.layers.0.self_attn.o_proj"
MLP = "model.layers.0.mlp"


@pytest.fixture(params=[2, 3, 4])
def ranks(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[Ranks]:
    made = Ranks(request.param)
    monkeypatch.setattr(split_module, "rank", made.rank)
    for module in (split_module, method_module):
        monkeypatch.setattr(module, "gathered", made.gathered)
    with build_on_one_rank():
        yield made


def stored(outputs: int, inputs: int, seed: int, *, permuted: bool = True) -> dict[str, torch.Tensor]:
    """What a checkpoint has of a linear."""
    generator = torch.Generator().manual_seed(seed)
    parts = pack(*quantize_rtn(torch.randn(outputs, inputs, generator=generator), 4, GROUP), 4)
    g_idx = natural_g_idx(inputs, GROUP)
    parts["g_idx"] = g_idx[torch.randperm(inputs, generator=generator)] if permuted else g_idx
    return parts


def dense(parts: dict[str, torch.Tensor]) -> torch.Tensor:
    """One rank's weights, as they are served: [outputs, inputs] in BF16, of scales in BF16."""
    return dequantize(**{**parts, "scales": parts["scales"].bfloat16()}, bits=4).bfloat16()


def row_parallel(config: Any, prefix: str, parts: dict[str, torch.Tensor], rank: int, size: int) -> Layer:
    inputs = len(parts["g_idx"])
    layer = Layer(config, prefix, inputs, [HIDDEN], ranks=size)
    layer.qweight.data.copy_(parts["qweight"].chunk(size)[rank])
    for name in ("scales", "qzeros", "g_idx"):
        parameter = getattr(layer, name)
        parameter.weight_loader(parameter, parts[name])
    return layer


def gate_up_of(config: Any, both: list[dict[str, torch.Tensor]], rank: int, size: int) -> Layer:
    layer = Layer(config, f"{MLP}.gate_up_proj", HIDDEN, [INNER // size] * 2)
    for name in ("qweight", "scales", "qzeros"):
        parts = [each[name].chunk(size, dim=1)[rank] for each in both]
        getattr(layer, name).data.copy_(torch.cat(parts, dim=1))
    for each in both:
        layer.g_idx.weight_loader(layer.g_idx, each["g_idx"])
    return layer


def test_a_rank_holds_its_rows_and_zeros_bit_for_bit(ranks: Ranks) -> None:
    parts = stored(HIDDEN, INNER, 1)
    expected = dense(parts)

    def work(rank: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        layer = row_parallel(act_order_config(), OUT, parts, rank, ranks.size)
        layer.finish()
        x = torch.randn(5, INNER, generator=torch.Generator().manual_seed(2)).bfloat16()
        return layer.qweight.data, layer.act_order, layer(x.chunk(ranks.size, dim=1)[rank]).float()

    results = ranks.run(work)
    for rank, (held, order, _) in enumerate(results):
        mine = expected.chunk(ranks.size, dim=1)[rank]
        zero = (held == 0).all(dim=0)
        assert torch.equal(held[:, ~zero], mine[:, order.long()][:, ~zero])
        assert sorted(order[~zero].tolist()) == list(range(INNER // ranks.size))
    assert len({held.shape for held, _, _ in results}) == 1
    x = torch.randn(5, INNER, generator=torch.Generator().manual_seed(2)).bfloat16()
    whole = x.float() @ expected.float().T
    together = sum(partial for _, _, partial in results)
    assert torch.allclose(together, whole, rtol=0, atol=0.02 * float(whole.abs().max()))


@pytest.mark.parametrize("first", ["gate_up_proj", "down_proj"])
def test_an_mlp_is_that_of_one_rank_whichever_linear_is_finished_first(ranks: Ranks, first: str) -> None:
    gate, up, down = (
        stored(INNER, HIDDEN, 1),
        stored(INNER, HIDDEN, 2),
        stored(HIDDEN, INNER, 3),
    )
    up["g_idx"] = gate["g_idx"]
    x = torch.randn(5, HIDDEN, generator=torch.Generator().manual_seed(4)).bfloat16()

    def work(rank: int) -> tuple[Layer, torch.Tensor]:
        config = act_order_config()
        producer = gate_up_of(config, [gate, up], rank, ranks.size)
        consumer = row_parallel(config, f"{MLP}.down_proj", down, rank, ranks.size)
        for layer in (producer, consumer) if first == "gate_up_proj" else (consumer, producer):
            layer.finish()
        halves = producer(x).chunk(2, dim=-1)
        return consumer, consumer(torch.nn.functional.silu(halves[0]) * halves[1]).float()

    results = ranks.run(work)
    product = torch.nn.functional.silu(x @ dense(gate).T) * (x @ dense(up).T)
    expected = (product @ dense(down).T).float()
    together = sum(partial for _, partial in results)
    assert torch.allclose(together, expected, rtol=0, atol=0.02 * float(expected.abs().max()))
    for consumer, _ in results:
        assert consumer.quant_method.folded == (first == "gate_up_proj")
        assert (consumer.act_order is None) == (first == "gate_up_proj")
    if first == "gate_up_proj":
        # Every rank's part, one after another: all rows in the order of their groups, and nothing between.
        whole = torch.cat([consumer.qweight.data for consumer, _ in results], dim=1)
        order = torch.sort(down["g_idx"], stable=True).indices
        assert torch.equal(whole, dense(down)[:, order])


def test_rows_in_natural_order_are_held_as_they_are_where_groups_straddle_ranks_too(ranks: Ranks) -> None:
    parts = stored(HIDDEN, INNER, 1, permuted=False)
    expected = dense(parts).chunk(ranks.size, dim=1)

    def work(rank: int) -> Layer:
        layer = row_parallel(act_order_config(), OUT, parts, rank, ranks.size)
        layer.finish()
        return layer

    for rank, layer in enumerate(ranks.run(work)):
        assert layer.act_order is None
        assert torch.equal(layer.qweight.data, expected[rank])


def test_layers_of_one_shape_are_stored_in_one_shape(ranks: Ranks) -> None:
    several = [stored(HIDDEN, INNER, seed) for seed in range(4)]

    def work(rank: int) -> list[torch.Size]:
        config = act_order_config()
        layers = [
            row_parallel(config, f"model.layers.{number}.linear_attn.out_proj", parts, rank, ranks.size)
            for number, parts in enumerate(several)
        ]
        for layer in layers:
            layer.finish()
        return [layer.qweight.shape for layer in layers]

    assert len({shape for shapes in ranks.run(work) for shape in shapes}) == 1


def test_how_rows_are_stored_is_said_once_and_enters_the_key_of_graphs(
    ranks: Ranks, shown: Callable[[], str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(split_module, "_said", set())
    parts, configs = stored(HIDDEN, INNER, 1), []

    def work(rank: int) -> None:
        for number in range(2):
            layer = row_parallel(
                act_order_config(), f"model.layers.{number}.self_attn.o_proj", parts, rank, ranks.size
            )
            configs.append(layer.quant_method._vllm_config)
            layer.finish()

    ranks.run(work)
    (line,) = shown().splitlines()
    assert f"act order over {ranks.size} GPUs: each stores {INNER // ranks.size} rows of o_proj" in line
    assert f"{INNER} rows over {ranks.size}" in str(configs[0].additional_config)


def test_scales_of_another_shape_are_refused_by_name(ranks: Ranks) -> None:
    def work(rank: int) -> None:
        layer = Layer(act_order_config(), OUT, INNER, [HIDDEN], ranks=ranks.size)
        with pytest.raises(
            ActOrderError, match=r"o_proj: a tensor of its groups is \[3, 64\], and \[9, 64\]"
        ):
            layer.scales.weight_loader(layer.scales, torch.zeros(3, HIDDEN))

    ranks.run(work)


def test_a_vllm_without_a_kernel_for_the_blocks_is_refused_by_name(
    ranks: Ranks, monkeypatch: pytest.MonkeyPatch
) -> None:
    parts = stored(HIDDEN, INNER, 1)

    def refuse(*_: Any) -> None:
        raise ValueError("no kernel")

    monkeypatch.setattr(method_module.ActOrderLinearMethod, "_make_stored", refuse)

    def work(rank: int) -> None:
        layer = row_parallel(act_order_config(), OUT, parts, rank, ranks.size)
        with pytest.raises(ActOrderError, match=r"no kernel of this vLLM.*--recipe static-mse"):
            layer.finish()

    ranks.run(work)
