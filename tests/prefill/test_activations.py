"""Activations in e4m3: the kernel under Triton's interpreter, and how it is launched."""

from __future__ import annotations

from typing import Any

import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("triton")
from hypothesis import given, settings  # noqa: E402
from hypothesis import strategies as st  # noqa: E402

from vllm_qwen36_plugin.prefill import activations as module  # noqa: E402

from .test_launches import Triton, stand_in  # noqa: E402

FP8 = torch.float8_e4m3fn
LEAST = 1 / (448 * 512)


def reference(x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """As vLLM's `dynamic_per_token_scaled_fp8_quant` defines it, with a product for its quotient."""
    scales = (x.float().abs().amax(dim=1, keepdim=True) / 448).clamp(min=LEAST)
    return (x.float() * (1 / scales)).to(FP8), scales


def same(result: torch.Tensor, expected: torch.Tensor) -> bool:
    return torch.equal(result.view(torch.uint8), expected.view(torch.uint8))


@settings(max_examples=40, deadline=None)
@given(
    m=st.integers(1, 3),
    k=st.integers(1, 700) | st.sampled_from([64, 128, 160, 192, 4096, 5120, 4097]),
    dtype=st.sampled_from([torch.bfloat16, torch.float16]),
    seed=st.integers(0, 9),
)
def test_a_token_is_what_its_largest_magnitude_makes_of_it(
    interpreted_activations: Any, m: int, k: int, dtype: torch.dtype, seed: int
) -> None:
    generator = torch.Generator().manual_seed(seed)
    x = (torch.randn(m, k, generator=generator) * torch.tensor([[1.0], [0.1], [300.0]])[:m]).to(dtype)
    result, scales = interpreted_activations.quantize_tokens(x)
    expected, wanted_scales = reference(x)
    assert (result.shape, result.dtype, scales.shape) == ((m, k), FP8, (m, 1))
    assert torch.equal(scales, wanted_scales)
    assert same(result, expected)
    assert bool((result.float().abs().amax(dim=1) == 448)[scales[:, 0] > LEAST].all())


def test_zeros_and_what_is_next_to_nothing_have_the_least_scale(interpreted_activations: Any) -> None:
    x = torch.zeros(2, 100, dtype=torch.bfloat16)
    x[1, 7] = 2.0**-30
    result, scales = interpreted_activations.quantize_tokens(x)
    assert scales.flatten().tolist() == [pytest.approx(LEAST)] * 2
    assert not bool(result.float().any())


@pytest.mark.filterwarnings(
    "ignore:invalid value encountered", "ignore:All-NaN", "ignore:overflow encountered"
)
def test_what_is_no_number_stays_none_and_leaves_other_tokens_alone(interpreted_activations: Any) -> None:
    x = torch.randn(4, 192, generator=torch.Generator().manual_seed(0)).bfloat16()
    clean, scales = interpreted_activations.quantize_tokens(x)
    x[1, 150] = float("nan")
    x[2, 3] = float("-inf")
    result, changed = interpreted_activations.quantize_tokens(x)
    for token in (0, 3):
        assert same(result[token], clean[token])
        assert scales[token] == changed[token]
    assert bool(result[1, 150].isnan())
    assert bool(result[2, 3].isnan())


def test_no_tokens_are_none(interpreted_activations: Any) -> None:
    result, scales = interpreted_activations.quantize_tokens(torch.zeros(0, 128, dtype=torch.bfloat16))
    assert (result.shape, scales.shape) == ((0, 128), (0, 1))


# k, and what one kernel's constants are.
LENGTHS = {
    5120: (4096, 1024, True),
    6144: (4096, 2048, True),
    17408: (16384, 1024, True),
    4096: (4096, 0, True),
    1000: (512, 512, False),
    1: (1, 0, True),
}


@pytest.fixture
def triton(monkeypatch: pytest.MonkeyPatch) -> Triton:
    return stand_in(monkeypatch, module, "_quantize_tokens")


@pytest.mark.parametrize("k", LENGTHS)
def test_a_token_is_two_powers_of_two(triton: Triton, k: int) -> None:
    module.quantize_tokens(torch.zeros(3, k, dtype=torch.bfloat16))
    ((grid, *_, length, first, rest, whole),) = triton.launches
    assert (grid, length) == ((3, 1, 1), k)
    assert (first, rest, whole) == LENGTHS[k]
    assert triton.options == [{"num_warps": 8 if k == 17408 else 4}]


def test_a_second_launch_goes_past_the_look_up_with_the_same_arguments(triton: Triton) -> None:
    module.quantize_tokens(torch.zeros(3, 160, dtype=torch.bfloat16))
    x = torch.zeros(9, 160, dtype=torch.bfloat16)
    tokens, scales = module.quantize_tokens(x)
    assert len(triton.launches) == 1
    ((grid, *arguments),) = triton.compiled[0].launches
    assert grid == (9, 1, 1)
    assert arguments == [x.data_ptr(), tokens.data_ptr(), scales.data_ptr(), 160, 128, 32, True]


@pytest.mark.parametrize(
    "other",
    [
        lambda: torch.zeros(3, 128, dtype=torch.bfloat16),
        lambda: torch.zeros(3, 160, dtype=torch.float16),
        # An address that 16 does not divide: Triton compiles other loads for it.
        lambda: torch.zeros(1 + 3 * 160, dtype=torch.bfloat16)[1:].view(3, 160),
    ],
)
def test_whatever_another_kernel_is_compiled_for_is_looked_up(triton: Triton, other: Any) -> None:
    module.quantize_tokens(torch.zeros(3, 160, dtype=torch.bfloat16))
    module.quantize_tokens(other())
    module.quantize_tokens(other())
    assert len(triton.launches) == 2


@settings(max_examples=30, deadline=None)
@given(
    m=st.integers(1, 3),
    groups=st.sampled_from([1, 2, 15, 16, 17, 40]),
    dtype=st.sampled_from([torch.bfloat16, torch.float16]),
    into=st.sampled_from([torch.int8, FP8]),
    seed=st.integers(0, 9),
)
def test_a_group_is_what_its_largest_magnitude_makes_of_it(
    interpreted_groups: Any, m: int, groups: int, dtype: torch.dtype, into: torch.dtype, seed: int
) -> None:
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(m, groups * 128, generator=generator)
    x[:, 5::128] *= 100
    x[:, :128] *= torch.tensor([[1.0], [0.0], [1e-3]])[:m]
    x = x.to(dtype)
    result, scales = interpreted_groups.quantize_groups(x, into)
    expected, wanted_scales = module.reference_groups(x, into)
    assert (result.shape, result.dtype, scales.shape) == (x.shape, into, (m, groups))
    assert torch.equal(scales, wanted_scales)
    assert same(result, expected)
    values = module.values_of(result, scales)
    steps = scales.repeat_interleave(128, dim=1)
    if into == torch.int8:
        assert bool(((values - x.float()).abs() <= 0.5001 * steps).all())
    else:
        assert bool(((values - x.float()).abs() <= (x.float().abs() / 16).clamp(min=steps / 512)).all())


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), float("-inf")])
@pytest.mark.parametrize("into", [torch.int8, FP8])
@pytest.mark.filterwarnings("ignore:invalid value encountered")
def test_what_is_no_number_is_seen_in_its_group_alone(
    interpreted_groups: Any, into: torch.dtype, bad: float
) -> None:
    x = torch.ones(2, 384, dtype=torch.bfloat16)
    x[1, 200] = bad
    _, scales = interpreted_groups.quantize_groups(x, into)
    wrong = ~scales.isfinite()
    assert wrong.tolist() == [[False] * 3, [False, True, False]]
