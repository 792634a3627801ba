"""Rounding passes the check of cheaper weights with room to spare; what a wrong kernel would make does not."""

from __future__ import annotations

from typing import Any

import pytest

torch = pytest.importorskip("torch")

from gptq_hybrid.packing import dequantize, pack, quantize_rtn  # noqa: E402
from vllm_qwen36_plugin.draft_head.selftest import LIMITS, require_agreement  # noqa: E402

# Of the 27B's weights, as methods.quantizing_method has them; e4m3 has a scale a channel.
GROUPS = {"w4": 32, "w8": 128}


def weight(outliers: int = 0) -> torch.Tensor:
    """Normally distributed, one of so many in a channel six times as large."""
    made = torch.randn(192, 512, generator=torch.Generator().manual_seed(1))
    if outliers:
        made[:, ::outliers] *= 6
    return made.bfloat16()


def rounded(dense: torch.Tensor, precision: str) -> torch.Tensor:
    """``dense`` as ``precision`` stores it, ``[n, k]``."""
    if precision == "fp8":
        scales = dense.float().abs().amax(1, keepdim=True) / 448
        return ((dense.float() / scales).to(torch.float8_e4m3fn).float() * scales).bfloat16()
    bits = int(precision[1:])
    parts = pack(*quantize_rtn(dense, bits, GROUPS[precision], scale_dtype=dense.dtype), bits)
    return dequantize(**parts, bits=bits).bfloat16()


def error(dense: torch.Tensor, precision: str) -> float:
    """Share of the result's size, as the check has it: the least limit that lets it pass."""
    x = torch.randn(64, dense.shape[1], generator=torch.Generator().manual_seed(2)).bfloat16()
    exact = x.float() @ dense.float().t()
    return float((x.float() @ rounded(dense, precision).float().t() - exact).norm() / exact.norm())


@pytest.mark.parametrize("outliers", [0, 32, 128])
@pytest.mark.parametrize("precision", LIMITS)
def test_rounding_takes_two_thirds_of_the_limit_at_most(precision: Any, outliers: int) -> None:
    dense = weight(outliers)
    assert error(dense, precision) < LIMITS[precision] * 2 / 3
    made = rounded(dense, precision)
    require_agreement(dense, lambda x: x @ made.t(), precision)


@pytest.mark.parametrize(("precision", "size"), [("w8", 0.006), ("fp8", 0.026), ("w4", 0.08)])
def test_rounding_of_a_normal_weight_is_of_the_size_that_is_said(precision: str, size: float) -> None:
    assert error(weight(), precision) == pytest.approx(size, rel=0.25)


WRONG = {
    "scales of the next group": lambda dense: dense * 1.7,
    "zero points off by one": lambda dense: dense + 0.15 * dense.abs().amax(1, keepdim=True),
    "rows out of order": lambda dense: dense.flip(1),
    "the sign": lambda dense: -dense,
    "nothing": torch.zeros_like,
    "not a number": lambda dense: dense * float("nan"),
    "columns out of order": lambda dense: dense.roll(1, 0),
}


@pytest.mark.parametrize("what", WRONG)
@pytest.mark.parametrize("precision", LIMITS)
def test_a_kernel_that_reads_it_wrongly_does_not_pass(precision: Any, what: str) -> None:
    dense = weight()
    wrong = WRONG[what](rounded(dense, precision))
    with pytest.raises(ValueError, match=r"off by (\d|nan|inf)"):
        require_agreement(dense, lambda x: x @ wrong.t(), precision)


def test_a_weight_of_zeros_is_right_as_zeros_alone() -> None:
    zeros = torch.zeros(64, 256).bfloat16()
    require_agreement(zeros, lambda x: x @ zeros.t(), "w8")
    with pytest.raises(ValueError, match="off by inf"):
        require_agreement(zeros, lambda x: x @ (zeros + 1).t(), "w8")
