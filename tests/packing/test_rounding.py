"""Rounding to nearest: codes in range, scales that minimise the error asked for, nothing lost on odd weights."""

from __future__ import annotations

from typing import Any

import pytest

torch = pytest.importorskip("torch")

from hypothesis import given, settings  # noqa: E402
from hypothesis import strategies as st  # noqa: E402

from gptq_hybrid.packing import dequantize, pack, quantize_rtn, rounding  # noqa: E402


def heavy_tails(channels: int, inputs: int, seed: int) -> Any:
    """Student's t with 4 degrees of freedom, more like weights than a normal distribution."""
    generator = torch.Generator().manual_seed(seed)
    normal = torch.randn(channels, inputs, generator=generator)
    square = torch.randn(4, channels, inputs, generator=generator).square().mean(dim=0)
    return normal / square.sqrt() * 0.02


def normal(channels: int, inputs: int, seed: int = 0, dtype: Any = torch.bfloat16) -> Any:
    return torch.randn(channels, inputs, generator=torch.Generator().manual_seed(seed)).to(dtype)


def unpacked(codes: Any, scales: Any, bits: int) -> Any:
    return dequantize(**pack(codes, scales, bits), bits=bits)


def squared_error(weight: Any, codes: Any, scales: Any, bits: int, importance: Any = 1.0) -> float:
    return float(((weight.float() - unpacked(codes, scales, bits)).square() * importance).sum())


def error_with(weight: Any, scale: Any, bits: int) -> Any:
    """Squared error of each group of ``weight`` ``[groups, size]`` with a ``scale`` ``[groups, 1]``."""
    half = 1 << (bits - 1)
    return ((weight / scale).round().clamp(-half, half - 1) * scale - weight).square().sum(1)


@given(bits=st.sampled_from([2, 3, 4, 8]), group=st.sampled_from([32, 128, -1]), seed=st.integers(0, 1 << 20))
@settings(max_examples=25, deadline=None)
def test_the_error_of_a_weight_that_is_not_clipped_is_half_a_step(bits: int, group: int, seed: int) -> None:
    weight = heavy_tails(32, 256, seed)
    codes, scales = quantize_rtn(weight, bits, group, search=False)
    size = 256 if group == -1 else group
    step = scales.float().repeat_interleave(size, dim=1)
    # The scale itself is rounded to float16, which can cut the largest magnitude by 2**-11 of itself.
    bound = 0.5 * step + weight.abs() * 2**-10
    assert bool(((weight - unpacked(codes, scales, bits)).abs() <= bound).all())


@given(seed=st.integers(0, 10**6), power=st.integers(-12, 12), outlier=st.floats(1, 300))
@settings(max_examples=30, deadline=None)
def test_every_weight_is_within_half_a_step_or_clipped(seed: int, power: int, outlier: float) -> None:
    weight = normal(16, 128, seed) * 2.0**power
    weight[:, seed % 128] *= outlier
    codes, scales = quantize_rtn(weight, 4, 128, scale_dtype=torch.bfloat16)
    step = scales.abs().float()
    error = (unpacked(codes, scales, 4) - weight.float()).abs()
    clipped = weight.float().abs() >= 7.4 * step
    assert bool(((error <= step * 0.5001) | clipped).all())


@pytest.mark.parametrize("bits", [2, 3, 4])
@pytest.mark.parametrize("group", [128, -1])
def test_searching_lowers_the_error_by_a_quarter_or_more(bits: int, group: int) -> None:
    weight = heavy_tails(64, 1024, 1)
    plain = squared_error(weight, *quantize_rtn(weight, bits, group, search=False), bits)
    searched = squared_error(weight, *quantize_rtn(weight, bits, group), bits)
    assert searched < 0.75 * plain


@pytest.mark.parametrize("group", [32, 128, -1])
def test_eight_bits_are_better_for_the_search(group: int) -> None:
    weight = heavy_tails(64, 1024, 2)
    plain = squared_error(weight, *quantize_rtn(weight, 8, group, search=False), 8)
    assert squared_error(weight, *quantize_rtn(weight, 8, group), 8) < 0.99 * plain


@pytest.mark.parametrize("bits", [4, 8])
@pytest.mark.parametrize("make", [normal, heavy_tails])
@pytest.mark.parametrize("group", [32, 128, -1])
def test_hundreds_of_scales_of_both_signs_would_gain_little(bits: int, make: Any, group: int) -> None:
    weight = make(8 if group == -1 else 16, 2048, 4).float()
    half = 1 << (bits - 1)
    found = squared_error(weight, *quantize_rtn(weight, bits, group, scale_dtype=torch.bfloat16), bits)
    groups = weight.view(-1, 2048 if group == -1 else group)
    largest = groups.abs().amax(1, keepdim=True)
    best = torch.full((len(groups),), torch.inf)
    for divisor in torch.linspace(0.75, 5 if bits == 4 else 1.4, 301).tolist():
        for sign in (1, -1):
            scale = (sign * largest / (divisor * half)).bfloat16().float()
            best = torch.minimum(best, error_with(groups, scale, bits))
    # At 8 bits what remains is luck: where a grid happens to meet the largest weights of a small group.
    assert found < float(best.sum()) * (1.02 if bits == 4 else 1.12 if group == 32 else 1.05)


@pytest.mark.parametrize("group_size", [32, 64, 128])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("bits", [4, 8])
def test_what_gptq_can_represent_comes_back_as_it_was(group_size: int, dtype: Any, bits: int) -> None:
    generator = torch.Generator().manual_seed(3)
    half = 1 << (bits - 1)
    codes = torch.randint(-half, half, (96, 4, group_size), generator=generator)
    codes[:, :, 0] = -half  # else a smaller range has a finer grid
    # Powers of two, of either sign: their products with 256 integers are exact in either dtype.
    scales = 2.0 ** torch.randint(-6, 3, (96, 4, 1), generator=generator)
    scales *= torch.randint(0, 2, (96, 4, 1), generator=generator) * 2 - 1
    weight = (codes * scales).flatten(1).to(dtype)
    back = unpacked(*quantize_rtn(weight, bits, group_size, scale_dtype=dtype), bits)
    assert torch.equal(back, weight.float())


def test_the_largest_weight_of_a_group_may_be_of_either_sign() -> None:
    weight = torch.linspace(-7, 7, 128).round().repeat(32, 1)
    weight[0, 5], weight[1, 5] = 8.0, -8.0
    codes, scales = quantize_rtn(weight, 4, 128)
    assert scales[:2, 0].tolist() == [-1.0, 1.0]
    assert torch.equal(unpacked(codes, scales, 4), weight)


def test_importance_moves_the_error_to_where_it_matters_less() -> None:
    weight = heavy_tails(64, 256, 3)
    importance = torch.where(torch.arange(256) % 8 == 0, 100.0, 1.0)
    blind = quantize_rtn(weight, 3, 128)
    weighed = quantize_rtn(weight, 3, 128, importance=importance)
    assert squared_error(weight, *weighed, 3, importance) < 0.9 * squared_error(weight, *blind, 3, importance)
    assert squared_error(weight, *weighed, 3) > squared_error(weight, *blind, 3)


def test_more_bits_and_smaller_groups_mean_less_error() -> None:
    weight = heavy_tails(64, 256, 4)
    by_bits = [squared_error(weight, *quantize_rtn(weight, bits, 128), bits) for bits in (2, 3, 4, 8)]
    by_group = [squared_error(weight, *quantize_rtn(weight, 4, group), 4) for group in (-1, 128, 64, 32)]
    assert by_bits == sorted(by_bits, reverse=True)
    assert by_group == sorted(by_group, reverse=True)


def test_groups_of_zeros_and_of_tiny_weights_keep_a_scale_other_than_zero() -> None:
    weight = torch.zeros(32, 256)
    weight[1] = 1e-9
    weight[2, :128] = 1e-3
    codes, scales = quantize_rtn(weight, 8, 128)
    assert bool((scales != 0).all())
    assert bool((codes[[0, 1]] == 128).all())
    assert bool((codes[2, 128:] == 128).all())
    assert torch.allclose(unpacked(codes, scales, 8)[2], weight[2], rtol=0.01)


def test_bfloat16_scales_are_the_same_numbers_in_float16() -> None:
    weight = heavy_tails(32, 256, 5)
    codes, scales = quantize_rtn(weight, 8, 128, scale_dtype=torch.bfloat16)
    assert scales.dtype == torch.bfloat16
    assert torch.equal(scales.to(torch.float16).to(torch.bfloat16), scales)
    rounded_later = quantize_rtn(weight, 8, 128)
    assert squared_error(weight, codes, scales, 8) < squared_error(
        weight, rounded_later[0], rounded_later[1].to(torch.bfloat16), 8
    )


def test_channels_are_rounded_by_themselves_whatever_the_chunk(monkeypatch: pytest.MonkeyPatch) -> None:
    weight = heavy_tails(37, 256, 6)
    whole = quantize_rtn(weight, 4, 128)
    monkeypatch.setattr(rounding, "_CHUNK_CPU", 256 * 5)
    for in_chunks, at_once in zip(quantize_rtn(weight, 4, 128), whole, strict=True):
        assert torch.equal(in_chunks, at_once)


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), float("-inf")])
@pytest.mark.parametrize("search", [True, False])
def test_a_weight_that_is_not_finite_is_refused_with_its_channel(bad: float, search: bool) -> None:
    weight = heavy_tails(32, 128, 7)
    weight[3, 5] = bad
    with pytest.raises(ValueError, match=r"NaN or infinite .* channel 3"):
        quantize_rtn(weight, 4, 128, search=search)


def test_a_weight_too_large_for_its_scales_is_refused() -> None:
    weight = normal(32, 128, dtype=torch.float32) * 1e6
    quantize_rtn(weight, 4, 128, scale_dtype=torch.bfloat16)
    with pytest.raises(ValueError, match=r"too large for torch\.float16"):
        quantize_rtn(weight, 4, 128)


def test_groups_that_do_not_divide_and_odd_importance_are_refused() -> None:
    weight = heavy_tails(32, 192, 8)
    with pytest.raises(ValueError, match="groups of 128"):
        quantize_rtn(weight, 4, 128)
    for importance in (torch.ones(3), -torch.ones(192), torch.full((192,), torch.nan)):
        with pytest.raises(ValueError, match="importance"):
            quantize_rtn(weight, 4, 64, importance=importance)
