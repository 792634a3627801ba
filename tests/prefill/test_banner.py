"""The line that start-up says of the linears."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

pytest.importorskip("torch")

from vllm_qwen36_plugin.prefill.banner import table_line
from vllm_qwen36_plugin.prefill.profile import Starts
from vllm_qwen36_plugin.prefill.settings import Settings
from vllm_qwen36_plugin.prefill.shape import Shape

FP8 = Settings("fp8", 128 << 20, None)


def linear(
    n: int,
    starts: Starts,
    order: tuple[str, ...] = ("fp8", "exact"),
    layout: str = "marlin",
    bits: int = 4,
) -> Any:
    return SimpleNamespace(shape=Shape(layout, 5120, n, bits, 128, "bfloat16"), starts=starts, routes=order)


def test_each_shape_says_what_serves_it_from_how_many_tokens() -> None:
    line = table_line(
        [linear(34816, Starts(512, 256)), linear(14336, Starts(None, 1024)), linear(16384, Starts())],
        FP8,
        "measured: NVIDIA L40S, 2026-11-27, in 3.2 s",
    )
    assert line == (
        "vllm-qwen36-plugin: prefill=fp8, number of tokens from which a linear (marlin weights) takes another "
        "route than vLLM's kernel: 5120x14336 fp8 from 1024; 5120x16384 stock; 5120x34816 fp8 from 256 and exact "
        "from 512 (measured: NVIDIA L40S, 2026-11-27, in 3.2 s; scratch 128 MiB)"
    )


def test_another_gemm_than_vllms_is_named_with_the_route_that_has_it() -> None:
    line = table_line([linear(34816, Starts(512, 256, "torch"))], FP8, "x")
    assert "5120x34816 fp8 by torch's GEMM from 256 and exact from 512 (" in line
    line = table_line([linear(34816, Starts(512, None, "torch"))], FP8, "x")
    assert "5120x34816 exact from 512 (" in line


def test_a_route_that_may_not_be_taken_is_not_named() -> None:
    line = table_line([linear(34816, Starts(512, 256), ("exact",))], FP8, "x")
    assert "5120x34816 exact from 512 (" in line


def test_nothing_known_and_nothing_loaded_are_said_too() -> None:
    assert ": none (no profile; scratch 128 MiB)" in table_line([], FP8, "")
    assert "(machete/marlin weights)" in table_line(
        [linear(64, Starts()), linear(128, Starts(), layout="machete")], FP8, ""
    )


def test_linears_in_other_bits_are_told_apart() -> None:
    line = table_line([linear(14336, Starts(512)), linear(14336, Starts(1024), bits=8)], FP8, "x")
    assert "5120x14336 w4 exact from 512; 5120x14336 w8 exact from 1024 (x;" in line


def test_any_iterable_of_linears_will_do() -> None:
    linears = [linear(34816, Starts(512))]
    assert table_line(iter(linears), FP8, "x") == table_line(linears, FP8, "x")
