"""The Triton kernel under Triton's interpreter, against what `expand` promises, worked out with torch."""

from __future__ import annotations

from typing import Any

import pytest

torch = pytest.importorskip("torch")
from hypothesis import given, settings  # noqa: E402
from hypothesis import strategies as st  # noqa: E402

from gptq_hybrid.packing import (  # noqa: E402
    dequantize_symmetric,
    natural_g_idx,
)
from vllm_qwen36_plugin.act_order import sorting  # noqa: E402
from vllm_qwen36_plugin.prefill.expand import reference  # noqa: E402
from vllm_qwen36_plugin.prefill.layouts import LAYOUTS  # noqa: E402
from vllm_qwen36_plugin.prefill.routes import FP8, fp8_scales  # noqa: E402
from vllm_qwen36_plugin.prefill.shape import Shape  # noqa: E402

from .made import Weight, checkpoint_codes, checkpoint_words, pack, same  # noqa: E402

FORMATS = list(LAYOUTS)
GROUPS = {"marlin": (32, 64, 128, -1), "machete": (64, 128, -1)}
EVERY = [(name, bits, group) for name, bits in FORMATS for group in GROUPS[name]]


def expanded(
    interpreted: Any,
    weight: Weight,
    dtype: torch.dtype,
    first: int = 0,
    columns: int | None = None,
    inverse: torch.Tensor | None = None,
) -> torch.Tensor:
    """Some columns of a weight, and nothing written beside them."""
    shape = weight.shape
    columns = shape.n - first if columns is None else columns
    guarded = torch.full((columns + 2, shape.k), 7.0).to(dtype)
    interpreted.expand(
        weight.stock_words(),
        weight.stock_scales(),
        guarded[1:-1],
        first,
        layout=shape.layout,
        bits=shape.bits,
        group_size=shape.group_size,
        inverse=inverse,
    )
    assert bool((guarded[[0, -1]].float() == 7).all())
    return guarded[1:-1]


def shape_of(name: str, bits: int, group_size: int, k: int, n: int, dtype: str = "bfloat16") -> Shape:
    shape = Shape(name, k, n, bits, group_size, dtype)
    assert shape.expandable
    return shape


@pytest.mark.parametrize(
    ("name", "bits", "group_size", "dtype"),
    [(*case, "bfloat16") for case in EVERY] + [(*case, 64, "float16") for case in FORMATS],
)
def test_every_value_is_its_code_times_its_scale_rounded_once(
    interpreted: Any, name: str, bits: int, group_size: int, dtype: str
) -> None:
    weight = Weight.random(shape_of(name, bits, group_size, 384, 128, dtype), seed=bits)
    expected = weight.dense()[64:128]
    for kind in (torch.float32, getattr(torch, dtype)):
        assert same(expanded(interpreted, weight, kind, 64, 64), expected.to(kind)), kind


@pytest.mark.parametrize(("name", "bits", "group_size"), EVERY)
def test_in_eight_bits_it_is_divided_by_its_columns_scale_first(
    interpreted: Any, name: str, bits: int, group_size: int
) -> None:
    weight = Weight.random(shape_of(name, bits, group_size, 384, 128), seed=bits)
    inverse, column = fp8_scales(weight.scales, bits)
    result = expanded(interpreted, weight, FP8, 64, 64, inverse)
    # Scale and inverse first: a product of three rounds by the order of its factors.
    scaled = Weight(weight.shape, weight.codes, weight.scales.float() * inverse)
    assert same(result, scaled.dense()[64:].to(FP8))
    back, column = result.float() * column[64:, None], column[64:, None]
    expected = weight.dense()[64:]
    # e4m3 has 4 significant bits, and no step below 2**-9.
    assert bool(((back - expected).abs() <= expected.abs() * 2**-4 + column * 2**-10).all())


@pytest.mark.parametrize(("name", "bits"), FORMATS)
def test_a_run_along_k_may_end_anywhere_that_tiles_do(interpreted: Any, name: str, bits: int) -> None:
    step = LAYOUTS[name, bits].tile[0]
    for k in (
        step,
        interpreted.BLOCK_K - step,
        interpreted.BLOCK_K + step,
        2 * interpreted.BLOCK_K + 3 * step,
    ):
        weight = Weight.random(shape_of(name, bits, -1, k, 128), seed=k)
        assert same(expanded(interpreted, weight, torch.float16, 64), weight.dense()[64:].half()), k


@pytest.mark.parametrize(("name", "bits"), FORMATS)
def test_one_group_spelled_as_k_is_one_group(interpreted: Any, name: str, bits: int) -> None:
    weight = Weight.random(shape_of(name, bits, 128, 128, 128))
    assert same(expanded(interpreted, weight, torch.float16), weight.dense().half())


SCALES = {
    "negative": (lambda s: -s.abs(), "bfloat16"),
    "zero": (lambda s: s * 0, "bfloat16"),
    "zero-of-either-sign": (lambda s: torch.copysign(torch.zeros(()), s), "float16"),
    "tiny": (lambda s: torch.copysign(torch.tensor(1e-8), s), "bfloat16"),
    "subnormal": (lambda s: torch.copysign(torch.tensor(3e-7), s), "float16"),
    "large": (lambda s: torch.copysign(torch.tensor(6e4), s), "float16"),
}


@pytest.mark.parametrize("kind", SCALES)
@pytest.mark.parametrize(("name", "bits"), FORMATS)
@pytest.mark.filterwarnings("ignore:overflow encountered")
def test_scales_of_any_size_and_sign(interpreted: Any, name: str, bits: int, kind: str) -> None:
    change, dtype = SCALES[kind]
    shape = shape_of(name, bits, 64, 128, 128, dtype)
    weight = Weight.random(shape, scales=change(Weight.random(shape).scales.float()))
    for out in (torch.float32, getattr(torch, dtype)):
        assert same(expanded(interpreted, weight, out, 0, 64), weight.dense()[:64].to(out)), out
    inverse, _ = fp8_scales(weight.scales, bits)
    result = expanded(interpreted, weight, FP8, 64, 64, inverse)
    assert bool(result.float().isfinite().all())
    assert same(result, Weight(shape, weight.codes, weight.scales.float() * inverse).dense()[64:].to(FP8))


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), float("-inf")])
@pytest.mark.parametrize(("name", "bits"), FORMATS)
@pytest.mark.filterwarnings("ignore:invalid value encountered")
def test_a_scale_that_is_no_number_spoils_its_group_of_its_column_alone(
    interpreted: Any, name: str, bits: int, bad: float
) -> None:
    shape = shape_of(name, bits, 64, 256, 128)
    scales = Weight.random(shape).scales
    scales[2, 77] = bad
    weight = Weight.random(shape, scales=scales)
    result = expanded(interpreted, weight, torch.bfloat16, 64, 64)
    assert same(result, weight.dense()[64:].bfloat16())
    spoiled = ~result.float().isfinite()
    assert bool(spoiled[13, 128:192].all())
    assert int(spoiled.sum()) == 64


@settings(max_examples=12, deadline=None)
@given(data=st.data(), seed=st.integers(0, 2**31))
def test_any_columns_of_any_shape_it_takes(interpreted: Any, data: st.DataObject, seed: int) -> None:
    name, bits = data.draw(st.sampled_from(FORMATS))
    group_size = data.draw(st.sampled_from(GROUPS[name]))
    step = LAYOUTS[name, bits].tile[0] if group_size == -1 else group_size
    n = 64 * data.draw(st.integers(1, 4)) * (2 if name == "machete" else 1)
    shape = shape_of(name, bits, group_size, step * data.draw(st.integers(1, max(1, 500 // step))), n)
    first = 64 * data.draw(st.integers(0, n // 64 - 1))
    columns = 64 * data.draw(st.integers(1, min(2, (n - first) // 64)))
    weight = Weight.random(shape, seed)
    result = expanded(interpreted, weight, torch.bfloat16, first, columns)
    assert same(result, weight.dense()[first : first + columns].bfloat16())


@pytest.mark.parametrize(("name", "bits"), FORMATS)
@pytest.mark.parametrize("group_size", [64, 128])
def test_rows_sorted_by_act_order_are_an_ordinary_weight_to_it(
    interpreted: Any, name: str, bits: int, group_size: int
) -> None:
    shape = shape_of(name, bits, group_size, 384, 128)
    weight = Weight.random(shape, seed=group_size)
    generator = torch.Generator().manual_seed(bits)
    g_idx = natural_g_idx(shape.k, group_size)[torch.randperm(shape.k, generator=generator)]
    order = sorting.row_order(g_idx, group_size)
    assert order is not None
    values = (weight.codes - (1 << (bits - 1))).float()
    expected = (values * weight.scales.float()[g_idx.long()])[order.long()].t().to(weight.scales.dtype)

    words = weight.words()
    sorting.sort_rows(words, order, bits)
    stored = Weight(shape, checkpoint_codes(words, bits), weight.scales)
    assert same(expanded(interpreted, stored, weight.scales.dtype, 0, 64), expected[:64])
    assert same(dequantize_symmetric(words, weight.scales, bits), expected)


@pytest.mark.parametrize("out", [torch.bfloat16, FP8])
@pytest.mark.parametrize(("name", "bits", "group_size"), EVERY)
def test_the_reference_gives_the_same_bits(
    interpreted: Any, name: str, bits: int, group_size: int, out: torch.dtype
) -> None:
    weight = Weight.random(shape_of(name, bits, group_size, 384, 128), seed=bits)
    inverse = fp8_scales(weight.scales, bits)[0] if out == FP8 else None
    dense = torch.empty(64, 384, dtype=out)
    stored = weight.stock_words(), weight.stock_scales()
    reference(*stored, dense, 64, layout=name, bits=bits, group_size=group_size, inverse=inverse)
    assert same(dense, expanded(interpreted, weight, out, 64, 64, inverse))


@pytest.mark.parametrize(("name", "bits"), FORMATS)
def test_it_agrees_with_what_the_self_test_compares_it_with(interpreted: Any, name: str, bits: int) -> None:
    weight = Weight.random(shape_of(name, bits, 64, 128, 128))
    original = dequantize_symmetric(checkpoint_words(weight.codes, bits), weight.scales, bits)
    assert torch.equal(weight.stock_words(), pack(weight.codes, weight.layout))
    assert same(expanded(interpreted, weight, torch.bfloat16), original)


def test_the_module_that_everything_else_imports_is_still_compiled(interpreted: Any) -> None:
    from triton.runtime.interpreter import InterpretedFunction
    from triton.runtime.jit import JITFunction

    from vllm_qwen36_plugin.prefill import expand

    assert isinstance(expand._expand, JITFunction)
    assert isinstance(interpreted._expand, InterpretedFunction)
