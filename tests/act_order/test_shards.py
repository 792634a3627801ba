"""Act order over several ranks: what the ranks store are one rank's weights, bit for bit, whatever is split how."""

from __future__ import annotations

import pytest

torch = pytest.importorskip("torch")
from hypothesis import assume, given, settings  # noqa: E402
from hypothesis import strategies as st  # noqa: E402

from gptq_hybrid.packing import dequantize, natural_g_idx  # noqa: E402
from tests.act_order.test_sorting import act_order, packed  # noqa: E402
from vllm_qwen36_plugin.act_order import shards  # noqa: E402
from vllm_qwen36_plugin.act_order.sorting import permute_halves, row_order  # noqa: E402

RANKS = st.sampled_from([1, 2, 3, 4, 8])
GROUPS = st.sampled_from([-1, 32, 64, 128, 256])


@settings(max_examples=80, deadline=None)
@given(
    ranks=RANKS,
    words=st.integers(1, 30),
    bits=st.sampled_from([4, 8]),
    group=GROUPS,
    seed=st.integers(0, 2**31),
)
def test_each_rank_holds_its_rows_of_the_same_weights_bit_for_bit(
    ranks: int, words: int, bits: int, group: int, seed: int
) -> None:
    """Rows of a rank need not be whole groups, and the last group may have fewer rows than the others."""
    rows, columns = ranks * words * 8, 32
    parts = packed(rows, columns, bits, group, seed)
    g_idx = act_order(rows, group, seed)
    expected = dequantize(**parts, g_idx=g_idx, bits=bits)
    each = g_idx.view(ranks, -1)
    group = rows if group == -1 else group
    choices = shards.choose_block(each, group, bits)
    assert choices
    for block, stored in choices:
        for rank in range(ranks):
            held = shards.arrange(each[rank], block, stored)
            words_held = shards.take_rows(parts["qweight"].chunk(ranks)[rank], held.places, bits)
            scales = shards.take_scales(parts["scales"], held.groups)
            zeros = parts["qzeros"][:1].expand(len(scales), -1)
            g_held = natural_g_idx(stored, block)
            mine = dequantize(words_held, scales, zeros, g_held, bits)
            real = held.places >= 0
            assert held.places[real].sort().values.tolist() == list(range(rows // ranks))
            whole = expected.chunk(ranks, dim=1)[rank]
            assert torch.equal(mine[:, real], whole[:, held.places[real]])
            assert not mine[:, ~real].any()
            # The input is permuted by what is at each place; filling reads some input that is there.
            assert torch.equal(held.order[real].long(), held.places[real])
            assert 0 <= int(held.order.min()) <= int(held.order.max()) < rows // ranks


@settings(max_examples=40, deadline=None)
@given(
    ranks=st.sampled_from([2, 3, 4]),
    each=st.sampled_from([8, 32, 40, 128]),
    group=GROUPS,
    seed=st.integers(0, 2**31),
)
def test_gate_and_up_of_a_rank_produce_its_part_of_all_in_order(
    ranks: int, each: int, group: int, seed: int
) -> None:
    inner = ranks * each
    order = row_order(act_order(inner, group, seed), group)
    assume(order is not None)
    gate_up = torch.arange(3 * 2 * inner).view(3, 2 * inner)
    gate, up = gate_up.chunk(2, dim=1)
    parts = [torch.cat(pair, dim=1) for pair in zip(gate.chunk(ranks, 1), up.chunk(ranks, 1), strict=True)]
    permute_halves(gate_up, order)
    gate, up = gate_up.chunk(2, dim=1)
    for rank in range(ranks):
        mine = shards.halves_of_rank(torch.cat(parts, dim=1), order, rank, ranks)
        assert torch.equal(mine, torch.cat([gate.chunk(ranks, 1)[rank], up.chunk(ranks, 1)[rank]], dim=1))


def test_layers_of_one_shape_are_stored_in_one_shape() -> None:
    """Kernels, profiles and compiled graphs go by it; so does every rank."""
    orders = [act_order(1024, 128, seed).view(2, -1) for seed in range(3)]
    parts = [part for order in orders for part in order]
    block, stored = shards.choose_block(parts, 128, 4)[0]
    assert stored == max(shards.rows_needed(part, block) for part in parts)
    assert stored % 128 == 0
    for part in parts:
        assert len(shards.arrange(part, block, stored).places) == stored


def test_small_blocks_are_chosen_where_groups_are_torn_and_large_ones_where_they_are_whole() -> None:
    torn = act_order(6144, 128, 1).view(2, -1)
    assert shards.choose_block(torn, 128, 4)[0][0] == 32
    whole = natural_g_idx(6144, 128).view(2, -1)
    assert shards.choose_block(whole, 128, 4)[0] == (128, 3072)


def test_what_filling_costs_the_27b_over_two_and_four_ranks() -> None:
    """Of 6,144 rows in groups of 128, the inputs of both kinds of attention's output projection."""
    orders = [act_order(6144, 128, seed) for seed in range(64)]
    shares = {}
    for ranks in (2, 4):
        block, stored = shards.choose_block((p for o in orders for p in o.view(ranks, -1)), 128, 4)[0]
        assert block == 32
        shares[ranks] = stored * ranks / 6144 - 1
    assert 0.2 < shares[2] < 0.35 < shares[4] < 0.6


@pytest.mark.parametrize("stored", [32, 100])
def test_too_few_rows_or_no_whole_blocks_are_refused(stored: int) -> None:
    with pytest.raises(ValueError, match=f"{stored} rows do not hold 64 in blocks of 32"):
        shards.arrange(torch.tensor([0] * 20 + [1] * 20), 32, stored)
