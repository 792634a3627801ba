"""Four bits, rounded to nearest: what is stored, and how well the scales are chosen."""

from __future__ import annotations

import pytest

torch = pytest.importorskip("torch")

from hypothesis import given, settings  # noqa: E402
from hypothesis import strategies as st  # noqa: E402

from vllm_qwen36_plugin.draft_head import rounding  # noqa: E402
from vllm_qwen36_plugin.draft_head.rounding import quantize  # noqa: E402
from vllm_qwen36_plugin.packed import dequantize_words  # noqa: E402


def made(outputs: int, inputs: int, seed: int = 0, dtype: torch.dtype = torch.bfloat16) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(outputs, inputs, generator=generator).to(dtype)


def back(weight: torch.Tensor, group_size: int = 128, bits: int = 4) -> torch.Tensor:
    words, scales = quantize(weight, group_size, bits)
    return dequantize_words(words, scales, bits)


@pytest.mark.parametrize("group_size", [32, 64, 128])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("bits", [4, 8])
def test_what_gptq_can_say_comes_back_as_it_was(group_size: int, dtype: torch.dtype, bits: int) -> None:
    generator = torch.Generator().manual_seed(3)
    half = 1 << (bits - 1)
    values = torch.randint(-half, half, (96, 4 * group_size), generator=generator)
    values.view(96, 4, group_size)[:, :, 0] = -half  # else a smaller range has a finer grid
    # Powers of two: their products with 256 integers are exact in either dtype.
    scales = 2.0 ** torch.randint(-6, 3, (96, 4, 1), generator=generator)
    weight = (values.view(96, 4, group_size) * scales).view(96, -1).to(dtype)
    assert torch.equal(back(weight, group_size, bits), weight)


def test_shapes_and_dtypes_are_those_of_a_checkpoint() -> None:
    for bits, words_ in ((4, 64), (8, 128)):
        words, scales = quantize(made(192, 512), 128, bits)
        assert (words.shape, words.dtype) == ((words_, 192), torch.int32)
        assert (scales.shape, scales.dtype) == ((4, 192), torch.bfloat16)


def test_eight_bits_leave_a_fifteenth_of_the_error_of_four() -> None:
    weight = made(256, 1024)
    four, eight = (
        (back(weight, bits=bits).float() - weight.float()).square().mean().sqrt() for bits in (4, 8)
    )
    # A sixteenth, but for four bits' better scales and the rounding of what is compared.
    assert four / 18 < eight < four / 10


def test_the_largest_weight_of_a_group_may_be_of_either_sign() -> None:
    weight = torch.zeros(2, 128)
    weight[0, 5], weight[1, 5] = 8.0, -8.0
    weight[:, 6:] = torch.linspace(-7, 7, 122).round()
    assert torch.equal(back(weight.bfloat16()), weight.bfloat16())


def test_searched_scales_beat_the_largest_magnitude_by_a_quarter_of_the_error() -> None:
    weight = made(256, 1024)
    groups = weight.float().view(-1, 128)
    plain = (groups.abs().amax(1, keepdim=True) / 7).bfloat16().float()
    naive = ((groups / plain).round().clamp(-8, 7) * plain - groups).square().sum()
    searched = (back(weight).float() - weight.float()).square().sum()
    assert searched < 0.75 * naive


def test_no_trial_would_have_been_better() -> None:
    weight = made(8, 128, seed=5)
    group = weight.float()
    most = group.abs().amax(1, keepdim=True)
    found = (back(weight).float() - group).square().sum(1)
    for divisor in rounding._DIVISORS[4]:
        for sign in (1, -1):
            scale = sign * (most / divisor).bfloat16().float()
            trial = ((group / scale).round().clamp(-8, 7) * scale).bfloat16().float()
            # The stored product is rounded to BF16, which the search does not see.
            assert (found <= (trial - group).square().sum(1) * 1.02).all()


def test_chunks_of_rows_change_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    weight = made(70, 256)
    whole = quantize(weight, 128, 4)
    monkeypatch.setattr(rounding, "_CHUNK", 256 * 9)
    assert all(torch.equal(a, b) for a, b in zip(whole, quantize(weight, 128, 4), strict=True))


def test_zeros_stay_zeros() -> None:
    weight = made(64, 256)
    weight[3] = 0
    weight[:, 128:] = 0
    found = back(weight)
    assert not found[3].any()
    assert not found[:, 128:].any()


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), float("-inf")])
def test_a_weight_that_is_no_number_is_refused(bad: float) -> None:
    weight = made(64, 256)
    weight[9, 200] = bad
    with pytest.raises(ValueError, match="not all finite"):
        quantize(weight, 128, 4)


@pytest.mark.parametrize(("inputs", "group_size"), [(200, 128), (128, 12)])
def test_rows_of_broken_groups_are_refused(inputs: int, group_size: int) -> None:
    with pytest.raises(ValueError, match="groups"):
        quantize(made(64, inputs), group_size, 4)


@settings(max_examples=30, deadline=None)
@given(seed=st.integers(0, 10**6), power=st.integers(-30, 12), outlier=st.floats(1, 300))
def test_every_weight_is_within_a_step_of_what_it_was_or_cut_off_for_the_others(
    seed: int, power: int, outlier: float
) -> None:
    weight = made(16, 128, seed) * 2.0**power
    weight[:, seed % 128] *= outlier
    words, scales = quantize(weight, 128, 4)
    step = scales.t().abs().float()
    error = (dequantize_words(words, scales, 4).float() - weight.float()).abs()
    # Rounding: half a step, and a part in 256 of the value for BF16. More only where it is beyond the grid.
    allowed = step / 2 + weight.float().abs() / 128
    beyond = weight.float().abs() >= 7.4 * step
    assert ((error <= allowed) | beyond).all()
