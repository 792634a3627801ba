"""Sorting rows by ``g_idx``: the same numbers, bit for bit, for any act order."""

from __future__ import annotations

import pytest

torch = pytest.importorskip("torch")
from hypothesis import given, settings  # noqa: E402
from hypothesis import strategies as st  # noqa: E402

from gptq_hybrid.packing import dequantize, natural_g_idx, pack, quantize_rtn  # noqa: E402
from vllm_qwen36_plugin.act_order import sorting  # noqa: E402


def act_order(rows: int, group_size: int, seed: int) -> torch.Tensor:
    """A ``g_idx`` as GPTQ makes it from a random order of importance."""
    shuffled = torch.randperm(rows, generator=torch.Generator().manual_seed(seed))
    return natural_g_idx(rows, group_size)[shuffled]


def packed(rows: int, columns: int, bits: int, group_size: int, seed: int) -> dict[str, torch.Tensor]:
    """Random codes and scales; the last group may have fewer rows."""
    generator = torch.Generator().manual_seed(seed)
    groups = 1 if group_size == -1 else -(-rows // group_size)
    words = torch.randint(-(1 << 31), 1 << 31, (rows * bits // 32, columns), generator=generator)
    empty = quantize_rtn(torch.randn(columns, rows, generator=generator), bits, -1)
    zeros = pack(*empty, bits)["qzeros"].expand(groups, -1).contiguous()
    scales = torch.randn(groups, columns, generator=generator)  # of either sign
    return {"qweight": words.to(torch.int32), "scales": scales, "qzeros": zeros}


@settings(max_examples=60, deadline=None)
@given(
    words=st.integers(1, 40),
    bits=st.sampled_from([4, 8]),
    group_size=st.sampled_from([-1, 8, 24, 32, 40, 128]),
    seed=st.integers(0, 2**31),
)
def test_sorted_rows_on_a_permuted_input_are_the_same_weights_bit_for_bit(
    words: int, bits: int, group_size: int, seed: int
) -> None:
    rows, columns = words * 8, 32
    parts = packed(rows, columns, bits, group_size, seed)
    g_idx = act_order(rows, group_size, seed)
    order = sorting.row_order(g_idx, group_size)
    expected = dequantize(**parts, g_idx=g_idx, bits=bits)
    natural = natural_g_idx(rows, group_size)
    if order is None:
        assert torch.equal(g_idx, natural)
        return
    sorting.sort_rows(parts["qweight"], order, bits)
    assert torch.equal(dequantize(**parts, g_idx=natural, bits=bits), expected[:, order.long()])


@settings(max_examples=20, deadline=None)
@given(shards=st.sampled_from([1, 2, 4]), seed=st.integers(0, 2**31))
def test_shards_by_columns_sort_as_the_whole_does(shards: int, seed: int) -> None:
    parts = packed(256, 64, 4, 32, seed)
    order = sorting.row_order(act_order(256, 32, seed), 32)
    assert order is not None
    pieces = [piece.contiguous() for piece in parts["qweight"].chunk(shards, dim=1)]
    for piece in (*pieces, parts["qweight"]):
        sorting.sort_rows(piece, order, 4)
    assert torch.equal(torch.cat(pieces, dim=1), parts["qweight"])


def test_a_wide_layer_is_sorted_in_pieces(monkeypatch: pytest.MonkeyPatch) -> None:
    whole, pieces = (packed(64, 96, 4, 32, 1)["qweight"] for _ in range(2))
    order = sorting.row_order(act_order(64, 32, 1), 32)
    assert order is not None
    sorting.sort_rows(whole, order, 4)
    monkeypatch.setattr(sorting, "_CHUNK_VALUES", 64 * 7)
    sorting.sort_rows(pieces, order, 4)
    assert torch.equal(whole, pieces)


def test_natural_order_needs_nothing() -> None:
    assert sorting.row_order(natural_g_idx(256, 128), 128) is None
    assert sorting.row_order(torch.zeros(256, dtype=torch.int32), -1) is None


@pytest.mark.parametrize(
    ("g_idx", "group_size"),
    [([0, 0, 0, 1], 2), ([0, 0, 2, 2], 2), ([-1, 0, 1, 1], 2), ([0, 1, 0, 0], -1), ([3, 3, 1, 1], 2)],
    ids=["uneven", "gap", "negative", "two-of-one", "past-the-end"],
)
def test_what_is_no_act_order_is_refused(g_idx: list[int], group_size: int) -> None:
    with pytest.raises(ValueError, match="group"):
        sorting.row_order(torch.tensor(g_idx), group_size)


def test_the_product_of_gate_and_up_comes_out_in_the_order_of_down() -> None:
    """gate_up's columns permuted and down's rows sorted: the same MLP, with no permutation of activations."""
    generator = torch.Generator().manual_seed(0)
    hidden, inner = 16, 64
    gate_up = torch.randn(hidden, 2 * inner, generator=generator, dtype=torch.float64)
    down = torch.randn(inner, hidden, generator=generator, dtype=torch.float64)
    x = torch.randn(5, hidden, generator=generator, dtype=torch.float64)
    order = sorting.row_order(act_order(inner, 8, 3), 8)
    assert order is not None

    def product(weight: torch.Tensor) -> torch.Tensor:
        gate, up = (x @ weight).chunk(2, dim=-1)
        return torch.nn.functional.silu(gate) * up

    before = product(gate_up)
    sorting.permute_halves(gate_up, order)
    # Equal but for the places a matrix product and its vector units work in.
    assert torch.allclose(product(gate_up), before[:, order.long()], rtol=1e-12)
    assert torch.allclose(product(gate_up) @ down[order.long()], before @ down, rtol=1e-12)
