"""Rounding to nearest: codes in range, scales that minimise the error asked for, nothing lost on odd weights."""

from __future__ import annotations

from typing import Any

import pytest

torch = pytest.importorskip("torch")

from hypothesis import given, settings  # noqa: E402
from hypothesis import strategies as st  # noqa: E402

from gptq_hybrid.packing import dequantize, pack, quantize_rtn  # noqa: E402


def _student(rows: int, columns: int, seed: int) -> Any:
    # Heavier tails than a normal distribution's, as weights have.
    generator = torch.Generator().manual_seed(seed)
    normal = torch.randn(rows, columns, generator=generator)
    square = torch.randn(4, rows, columns, generator=generator).square().mean(dim=0)
    return normal / square.sqrt() * 0.02


def _dense(codes: Any, scales: Any, bits: int) -> Any:
    return dequantize(**pack(codes, scales, bits), bits=bits)


def _error(weight: Any, codes: Any, scales: Any, bits: int, importance: Any = 1.0) -> float:
    return float(((weight - _dense(codes, scales, bits)).square() * importance).sum())


@given(bits=st.sampled_from([2, 3, 4, 8]), group=st.sampled_from([32, 128, -1]), seed=st.integers(0, 1 << 20))
@settings(max_examples=25, deadline=None)
def test_the_error_of_a_weight_that_is_not_clipped_is_half_a_step(bits: int, group: int, seed: int) -> None:
    weight = _student(32, 256, seed)
    codes, scales = quantize_rtn(weight, bits, group, search=False)
    size = 256 if group == -1 else group
    step = scales.float().repeat_interleave(size, dim=1)
    # The scale itself is rounded to float16, which can cut the largest magnitude by 2**-11 of itself.
    bound = 0.5 * step + weight.abs() * 2**-10
    assert bool(((weight - _dense(codes, scales, bits)).abs() <= bound).all())


@pytest.mark.parametrize("bits", [2, 3, 4])
def test_searching_lowers_the_error(bits: int) -> None:
    weight = _student(64, 256, 1)
    plain = _error(weight, *quantize_rtn(weight, bits, 128, search=False), bits)
    searched = _error(weight, *quantize_rtn(weight, bits, 128), bits)
    assert searched < 0.95 * plain


def test_eight_bits_are_never_worse_for_the_search() -> None:
    weight = _student(64, 256, 2)
    assert _error(weight, *quantize_rtn(weight, 8, 128), 8) <= _error(
        weight, *quantize_rtn(weight, 8, 128, search=False), 8
    )


def test_importance_moves_the_error_to_where_it_matters_less() -> None:
    weight = _student(64, 256, 3)
    importance = torch.where(torch.arange(256) % 8 == 0, 100.0, 1.0)
    blind = quantize_rtn(weight, 3, 128)
    weighed = quantize_rtn(weight, 3, 128, importance=importance)
    assert _error(weight, *weighed, 3, importance) < 0.9 * _error(weight, *blind, 3, importance)
    assert _error(weight, *weighed, 3) > _error(weight, *blind, 3)


def test_more_bits_and_smaller_groups_mean_less_error() -> None:
    weight = _student(64, 256, 4)
    by_bits = [_error(weight, *quantize_rtn(weight, bits, 128), bits) for bits in (2, 3, 4, 8)]
    by_group = [_error(weight, *quantize_rtn(weight, 4, group), 4) for group in (-1, 128, 64, 32)]
    assert by_bits == sorted(by_bits, reverse=True)
    assert by_group == sorted(by_group, reverse=True)


def test_groups_of_zeros_and_of_tiny_weights_keep_a_scale_above_zero() -> None:
    weight = torch.zeros(32, 256)
    weight[1] = 1e-9
    weight[2, :128] = 1e-3
    codes, scales = quantize_rtn(weight, 8, 128)
    assert bool((scales > 0).all())
    assert bool((codes[[0, 1]] == 128).all())
    assert torch.allclose(_dense(codes, scales, 8)[2], weight[2], rtol=0.01)


def test_bfloat16_scales_are_the_same_numbers_in_float16() -> None:
    weight = _student(32, 256, 5)
    codes, scales = quantize_rtn(weight, 8, 128, scale_dtype=torch.bfloat16)
    assert scales.dtype == torch.bfloat16
    assert torch.equal(scales.to(torch.float16).to(torch.bfloat16), scales)
    rounded_later = quantize_rtn(weight, 8, 128)
    assert _error(weight, codes, scales, 8) < _error(
        weight, rounded_later[0], rounded_later[1].to(torch.bfloat16), 8
    )


def test_rows_are_rounded_by_themselves_whatever_the_chunk(monkeypatch: pytest.MonkeyPatch) -> None:
    from gptq_hybrid.packing import _rtn

    weight = _student(37, 256, 6)
    whole = quantize_rtn(weight, 4, 128)
    monkeypatch.setattr(_rtn, "_CHUNK", 256 * 5)
    for ours, theirs in zip(quantize_rtn(weight, 4, 128), whole, strict=True):
        assert torch.equal(ours, theirs)


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_a_weight_that_is_not_finite_is_refused(bad: float) -> None:
    weight = _student(32, 128, 7)
    weight[3, 5] = bad
    with pytest.raises(ValueError, match="NaN or infinite"):
        quantize_rtn(weight, 4, 128)


def test_groups_that_do_not_divide_and_odd_importance_are_refused() -> None:
    weight = _student(32, 192, 8)
    with pytest.raises(ValueError, match="groups of 128"):
        quantize_rtn(weight, 4, 128)
    for importance in (torch.ones(3), -torch.ones(192), torch.full((192,), torch.nan)):
        with pytest.raises(ValueError, match="importance"):
            quantize_rtn(weight, 4, 64, importance=importance)
