"""Marlin's words as Humming reads them for 8-bit activations: its own packing's, and the kernel that makes them."""

from __future__ import annotations

import hashlib
from typing import Any

import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("triton")

from vllm_qwen36_plugin.prefill import eight_bit_words as module  # noqa: E402
from vllm_qwen36_plugin.prefill.layouts import HUMMING_4, HUMMING_FLAT_4, MARLIN_4, Layout  # noqa: E402

# Of `weight_repack_nk` of humming-kernels 0.1.19 compiled for a CPU, for the codes below: the SHA-256 of the words.
THEIRS = {
    16: "982cf92e178957543a1f69d61e244cf2d2ddba21660ee5efff0595100d276dc2",
    8: "00897b7e79aa47c0595a7ab7603fac3d0ad2ec06acecbf1f12dfc79eb6c130cf",
    "e4m3": "a9e63ffee12f3c99379ecfe51faf51f5f408fca3d55832ca9ffe16bd357dc02c",
}


def patterned(k: int, n: int) -> torch.Tensor:
    down, across = torch.arange(k)[:, None], torch.arange(n)[None, :]
    return (down * 7 + across * 11 + down * across // 5) % 16


def digest(words: torch.Tensor) -> str:
    return hashlib.sha256(words.contiguous().numpy().tobytes()).hexdigest()


def made(call: Any, codes: torch.Tensor, first: int, columns: int, order: str) -> torch.Tensor:
    k, n = codes.shape
    out = torch.full((k // 32, 4 * columns), -1, dtype=torch.int32)
    call(MARLIN_4.words_of(codes), out, first, n, order)
    return out


def test_both_orders_are_those_of_hummings_own_packing() -> None:
    codes = patterned(192, 128)
    assert digest(MARLIN_4.words_of(codes)) == THEIRS[16]
    assert digest(HUMMING_4.words_of(codes)) == THEIRS[8]
    assert digest(made(module.reference, codes, 0, 128, "plain")) == THEIRS[8]
    assert digest(made(module.reference, codes, 0, 128, "signs")) == THEIRS["e4m3"]


def test_a_wrong_step_gives_other_words() -> None:
    lanes = HUMMING_4.lanes
    other = Layout("other", 4, (lanes[0], lanes[2], lanes[1]), HUMMING_4.words)
    assert digest(other.words_of(patterned(192, 128))) != THEIRS[8]


@pytest.mark.parametrize("layout", [MARLIN_4, HUMMING_4, HUMMING_FLAT_4], ids=lambda layout: layout.name)
def test_words_hold_each_code_once(layout: Layout) -> None:
    codes = torch.randint(0, 16, (128, 192), generator=torch.Generator().manual_seed(0))
    assert torch.equal(layout.codes(layout.words_of(codes), 128, 192), codes)


@pytest.mark.parametrize("order", ["plain", "signs", "flat"])
@pytest.mark.parametrize(
    ("k", "n", "first", "columns"),
    [(32, 64, 0, 64), (64, 192, 64, 128), (256, 128, 64, 64), (352, 128, 0, 128), (544, 320, 192, 64)],
)
def test_the_kernel_writes_what_the_tables_say(
    interpreted_words: Any, k: int, n: int, first: int, columns: int, order: str
) -> None:
    codes = torch.randint(0, 16, (k, n), generator=torch.Generator().manual_seed(k + n))
    expected = made(module.reference, codes, first, columns, order)
    assert torch.equal(made(interpreted_words.rearrange, codes, first, columns, order), expected)


def test_codes_of_e4m3_are_a_sign_and_what_is_left_of_the_magnitude() -> None:
    codes = torch.arange(16).repeat(32, 4)
    out = made(module.reference, codes, 0, 64, "signs")
    back = HUMMING_4.codes(out, 32, 64)[0, :16]
    assert back.tolist() == [15, 14, 13, 12, 11, 10, 9, 8, 0, 1, 2, 3, 4, 5, 6, 7]


def test_the_flat_order_is_gptqs_words_cut_and_signed() -> None:
    """As `transform_humming_weight` has it: XOR 8, then chunks of four words of 64 columns each."""
    k, n = 192, 128
    codes = patterned(k, n)
    packed = (codes.t().reshape(n, k // 8, 8) << torch.arange(0, 32, 4)).sum(dim=2)
    packed = (packed ^ 0x88888888).to(torch.int32)
    theirs = packed.reshape(n // 64, 64, k // 32, 4).permute(2, 0, 1, 3)
    assert torch.equal(made(module.reference, codes, 0, n, "flat").flatten(), theirs.flatten())
