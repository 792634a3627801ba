"""Packing follows GPTQ's file layout, bit for bit what gptqmodel writes, and unpacking is its definition."""

from __future__ import annotations

from typing import Any

import pytest

torch = pytest.importorskip("torch")

from hypothesis import given, settings  # noqa: E402
from hypothesis import strategies as st  # noqa: E402

from gptq_hybrid.packing import (  # noqa: E402
    BITS,
    dequantize,
    dequantize_symmetric,
    natural_g_idx,
    pack,
    pack_words,
    quantize_rtn,
    unpack_words,
)


def _codes(rows: int, columns: int, bits: int, seed: int = 0) -> Any:
    return torch.randint(0, 1 << bits, (rows, columns), generator=torch.Generator().manual_seed(seed))


def _scales(rows: int, groups: int, seed: int = 1) -> Any:
    return torch.rand(rows, groups, generator=torch.Generator().manual_seed(seed)).to(torch.float16) + 0.1


def _bit_by_bit(parts: dict[str, Any], bits: int, stored_minus: int) -> Any:
    """Unpack by the definition, in Python's integers: the bits of a column, one value after another."""

    def stream(words: list[int]) -> int:
        return sum((word & 0xFFFFFFFF) << (32 * number) for number, word in enumerate(words))

    columns = [stream(column) for column in parts["qweight"].t().tolist()]
    zeros = [stream(row) for row in parts["qzeros"].tolist()]
    mask = (1 << bits) - 1
    out = torch.empty(len(columns), len(parts["g_idx"]))
    for o, column in enumerate(columns):
        for i, group in enumerate(parts["g_idx"].tolist()):
            zero = ((zeros[group] >> (bits * o) & mask) + stored_minus) & mask
            out[o, i] = ((column >> (bits * i) & mask) - zero) * float(parts["scales"][group, o])
    return out


@pytest.mark.parametrize("bits", BITS)
@pytest.mark.parametrize("groups", [1, 2, 4])
def test_unpacking_is_the_definition(bits: int, groups: int) -> None:
    codes, scales = _codes(32, 64, bits), _scales(32, groups)
    parts = pack(codes, scales, bits)
    half = 1 << (bits - 1)
    want = (codes - half).float() * scales.float().repeat_interleave(64 // groups, dim=1)
    assert torch.equal(dequantize(**parts, bits=bits), want)
    assert torch.equal(_bit_by_bit(parts, bits, 1), want)


@pytest.mark.parametrize("bits", BITS)
def test_groups_in_any_order_and_both_formats(bits: int) -> None:
    parts = pack(_codes(64, 96, bits), _scales(64, 3), bits)
    order = torch.randperm(96, generator=torch.Generator().manual_seed(5))
    parts["g_idx"] = parts["g_idx"][order].contiguous()
    assert torch.equal(dequantize(**parts, bits=bits), _bit_by_bit(parts, bits, 1))
    assert torch.equal(
        dequantize(**parts, bits=bits, checkpoint_format="gptq_v2"), _bit_by_bit(parts, bits, 0)
    )


def test_without_g_idx_groups_are_in_natural_order() -> None:
    parts = pack(_codes(32, 64, 4), _scales(32, 4), 4)
    assert torch.equal(dequantize(**parts, bits=4), dequantize(**{**parts, "g_idx": None}, bits=4))


@pytest.mark.parametrize("bits", BITS)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("groups", [1, 4])
def test_a_symmetric_weight_is_one_product_rounded_once(bits: int, dtype: Any, groups: int) -> None:
    codes = _codes(32, 64, bits)
    scales = torch.randn(32, groups, generator=torch.Generator().manual_seed(2)).to(dtype)  # of either sign
    parts = pack(codes, scales, bits)
    found = dequantize_symmetric(parts["qweight"], parts["scales"], bits)
    assert found.is_contiguous()
    assert found.dtype == dtype
    assert torch.equal(found, _bit_by_bit(parts, bits, 1).to(dtype))
    transposed = parts["qweight"].t().contiguous().t()
    assert torch.equal(dequantize_symmetric(transposed, parts["scales"], bits), found)


def test_the_last_group_of_a_natural_order_may_be_smaller() -> None:
    assert natural_g_idx(7, 3).tolist() == [0, 0, 0, 1, 1, 1, 2]
    assert natural_g_idx(4, -1).tolist() == [0, 0, 0, 0]
    assert natural_g_idx(4, 2).dtype == torch.int32


@given(
    bits=st.integers(1, 8), words=st.integers(1, 3), columns=st.integers(1, 4), seed=st.integers(0, 1 << 30)
)
@settings(max_examples=40, deadline=None)
def test_values_of_any_width_come_back_from_their_words(
    bits: int, words: int, columns: int, seed: int
) -> None:
    values = _codes(32 * words, columns, bits, seed)
    packed = pack_words(values, bits)
    assert packed.shape == (bits * words, columns)
    assert torch.equal(unpack_words(packed, bits).long(), values)


@given(
    bits=st.sampled_from(BITS),
    rows=st.integers(1, 3),
    columns=st.integers(1, 3),
    seed=st.integers(0, 1 << 30),
)
@settings(max_examples=20, deadline=None)
def test_codes_come_back_from_any_zero_point(bits: int, rows: int, columns: int, seed: int) -> None:
    codes = _codes(32 * rows, 32 * columns, bits, seed)
    ones = torch.ones(32 * rows, columns)
    parts = pack(codes, ones, bits)
    # Any bits are valid zero points; what they say is added back.
    parts["qzeros"] = torch.randint(-(1 << 31), 1 << 31, parts["qzeros"].shape, dtype=torch.int64).to(
        torch.int32
    )
    back = dequantize(**parts, bits=bits, checkpoint_format="gptq_v2")
    zeros = _bit_by_bit({**parts, "qweight": torch.zeros_like(parts["qweight"])}, bits, 0)
    assert torch.equal(back - zeros, codes.float())


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"bits": 5}, "bits must be one of"),
        ({"g_idx": torch.arange(64, dtype=torch.int32)}, "g_idx"),
        ({"g_idx": -torch.ones(64, dtype=torch.int32)}, "g_idx"),
        ({"scales": torch.ones(2, 31)}, "do not belong"),
        (
            {"g_idx": None, "scales": torch.ones(5, 32), "qzeros": torch.zeros(5, 4, dtype=torch.int32)},
            "divide",
        ),
    ],
)
def test_what_does_not_go_together_is_refused(change: dict[str, Any], said: str) -> None:
    parts = {**pack(_codes(32, 64, 4), _scales(32, 2), 4), "bits": 4}
    with pytest.raises(ValueError, match=said):
        dequantize(**{**parts, **change})


def test_words_that_hold_no_whole_number_of_values_are_refused() -> None:
    with pytest.raises(ValueError, match="1 words hold no whole number of 3-bit values"):
        unpack_words(torch.zeros(1, 4, dtype=torch.int32), 3)
    with pytest.raises(ValueError, match="divide"):
        dequantize_symmetric(torch.zeros(8, 32, dtype=torch.int32), torch.ones(5, 32), 4)


def test_codes_that_fill_no_word_are_refused() -> None:
    with pytest.raises(ValueError, match="whole 32-bit words"):
        pack(_codes(32, 12, 4), _scales(32, 1), 4)
    with pytest.raises(ValueError, match="do not belong"):
        pack(_codes(32, 64, 4), _scales(32, 3), 4)


@pytest.mark.parametrize("bits", [4, 8])
def test_every_bit_is_what_gptqmodel_writes(bits: int) -> None:
    pytest.importorskip("gptqmodel")
    import gptq_hybrid

    gptq_hybrid.register()
    from gptqmodel import QuantizeConfig
    from gptqmodel.nn_modules.qlinear.torch import TorchLinear
    from gptqmodel.utils.model import convert_gptq_v2_to_v1_format_module

    weight = torch.randn(64, 256, generator=torch.Generator().manual_seed(bits)) * 0.05
    codes, scales = quantize_rtn(weight, bits, 128)
    ours = pack(codes, scales, bits)
    linear = torch.nn.Linear(256, 64, bias=False)
    linear.weight.data = dequantize(**ours, bits=bits)
    theirs = TorchLinear(
        bits=bits, group_size=128, sym=True, desc_act=False, in_features=256, out_features=64, bias=False,
        pack_dtype=torch.int32,
    )  # fmt: skip
    zeros = torch.full((64, 2), float(1 << (bits - 1)))
    theirs.pack(linear, scales.float(), zeros, ours["g_idx"])
    theirs.qzero_format(format=2)
    theirs.wf_unsqueeze_zero, theirs.wf_unsqueeze_neg_one = _shifts(bits)
    assert torch.equal(theirs.dequantize_weight().t().float(), dequantize(**ours, bits=bits).half().float())
    convert_gptq_v2_to_v1_format_module(theirs, QuantizeConfig(bits=bits, group_size=128))
    for name, tensor in ours.items():
        assert torch.equal(getattr(theirs, name), tensor), name
        assert getattr(theirs, name).dtype == tensor.dtype, name


def _shifts(bits: int) -> tuple[Any, Any]:
    shifts = torch.arange(0, 32, bits, dtype=torch.int32)
    return shifts.view(1, 1, -1), shifts.view(1, -1, 1)
