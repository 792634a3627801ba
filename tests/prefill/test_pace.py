"""From how many tokens on a pass outside CUDA graphs leaves the stock kernel: as the host keeps up."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vllm_qwen36_plugin.prefill.pace import UNKNOWN, Pace, busy_from
from vllm_qwen36_plugin.prefill.shape import Shape

GATE_UP = Shape("marlin", 256, 1024, 4, 128, "bfloat16")
QKV = Shape("marlin", 256, 512, 4, 128, "bfloat16")
MTP = Shape("marlin", 256, 1024, 8, 128, "bfloat16")


@dataclass(frozen=True)
class Kind:
    shape: Shape
    layers: int


KINDS = [Kind(GATE_UP, 16), Kind(QKV, 4), Kind(MTP, 1)]
# Of a layer: 2 µs a token by gate_up, and one in four has a qkv of 4.
TIMES = {
    GATE_UP: {"stock": {128: 256.0, 1024: 2048.0}},
    QKV: {"stock": {128: 512.0, 1024: 4096.0}},
    MTP: {"stock": {128: 1e6}},
}
HOST = {GATE_UP: {"stock": 10.0, "exact": 70.0}, QKV: {"stock": 10.0, "exact": 50.0}, MTP: {"stock": 1e6}}


def watching(settled: Callable[[], None] = lambda: None) -> Pace:
    pace = Pace()
    pace.watch(KINDS, TIMES, HOST, settled)
    assert pace.watching
    return pace


def passes(pace: Pace, layer_us: float, tokens: int = 1000, serves: bool = True, layers: int = 40) -> None:
    begin = pace._last + 1.0
    moment = iter(float(layer) * layer_us / 1e6 + begin for layer in range(layers))
    for _ in range(layers):
        pace.saw(GATE_UP.key, tokens, lambda: serves, lambda: next(moment))


def test_a_host_that_is_slow_leaves_more_to_the_stock_kernel() -> None:
    # 3 µs a token of stock; a route costs the host 60 of gate_up and a quarter of 40 besides: 70.
    for layer_us, tokens in ((1000.0, (1070 / 0.97) / 3), (2000.0, (2070 / 0.97) / 3)):
        pace = watching()
        assert pace.eager_from == UNKNOWN
        passes(pace, layer_us, layers=200)
        assert pace.layer_us == pytest.approx(layer_us)
        assert pace.eager_from == pytest.approx(tokens, abs=2)


def test_a_call_cut_in_two_costs_the_host_a_whole_call_more() -> None:
    # Beyond the stock kernel's call all of gate_up's 70 µs and a quarter of 50: 82.5.
    pace = watching()
    assert pace.cut_from == UNKNOWN
    passes(pace, 1000.0, layers=200)
    assert pace.cut_from == pytest.approx((1082.5 / 0.97) / 3, abs=2)
    assert pace.cut_from > pace.eager_from


def test_the_fastest_run_of_layers_counts_and_what_follows_is_said_once() -> None:
    said: list[int] = []
    pace = watching(lambda: said.append(pace.eager_from))
    for layer_us in (2000.0, 900.0, 1500.0, 1200.0, 1300.0, 1400.0):
        passes(pace, layer_us)
    assert pace.layer_us == pytest.approx(900)
    assert said == [pace.eager_from]


def test_passes_that_still_compile_leave_no_route_off_for_long_prompts() -> None:
    pace = watching()
    passes(pace, 57_000.0)
    assert pace.eager_from == UNKNOWN
    passes(pace, 57_000.0, layers=200)
    assert pace.eager_from > 8 * UNKNOWN


@pytest.mark.parametrize(
    ("tokens", "serves"), [(1000, False), (64, True)], ids=["no requests, or a graph", "as in decoding"]
)
def test_a_pass_that_launches_other_kernels_says_nothing(tokens: int, serves: bool) -> None:
    pace = watching()
    passes(pace, 10.0, tokens, serves)
    assert (pace.layer_us, pace.eager_from) == (None, UNKNOWN)


def test_calls_of_other_linears_are_not_watched() -> None:
    pace = watching()
    for _ in range(100):
        pace.saw(QKV.key, 1000, lambda: pytest.fail("asked"))
    assert pace.layer_us is None


def test_watching_ends() -> None:
    pace = watching()
    for _ in range(5000):
        if pace.watching:
            pace.saw(GATE_UP.key, 1000, lambda: False)
    assert not pace.watching


@pytest.mark.parametrize("missing", ["times", "host", "linears"])
def test_without_measurements_the_pace_stays_unknown(missing: str) -> None:
    pace = Pace()
    pace.watch(
        [] if missing == "linears" else KINDS,
        {} if missing == "times" else TIMES,
        {} if missing == "host" else HOST,
    )
    assert not pace.watching
    assert pace.eager_from == UNKNOWN


@given(
    steps=st.dictionaries(st.sampled_from([128, 256, 512, 1024, 2048, 8192]), st.floats(1, 100), min_size=1),
    host_us=st.floats(0, 1e5),
)
def test_from_there_on_the_stock_kernels_keep_the_gpu_busy(steps: dict[int, float], host_us: float) -> None:
    total, stock = 0.0, {}
    for tokens in sorted(steps):
        total += steps[tokens]
        stock[tokens] = total
    start = busy_from(stock, host_us)
    measured = [tokens for tokens in stock if tokens >= start]
    assert all(stock[tokens] >= host_us * (1 - 1e-9) for tokens in measured)
    below = [tokens for tokens in stock if tokens < start]
    assert all(stock[tokens] <= host_us * (1 + 1e-9) for tokens in below)
