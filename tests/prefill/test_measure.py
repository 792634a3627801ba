"""Times of each route, on a GPU whose clock is the test's, and what is made of them."""

from __future__ import annotations

from importlib.metadata import PackageNotFoundError
from types import SimpleNamespace
from typing import Any

import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("triton")

from vllm_qwen36_plugin.prefill import measure  # noqa: E402
from vllm_qwen36_plugin.prefill.profile import Card, Starts, from_json, to_json  # noqa: E402
from vllm_qwen36_plugin.prefill.shape import Shape  # noqa: E402

SHAPE = Shape("marlin", 64, 128, 4, -1, "bfloat16")
CARD = Card("NVIDIA Test GPU", "1", {"torch": "1"}, 128)
TOKENS = (128, 256, 512, 1024)


def times(**by_route: tuple[float, ...]) -> dict[str, dict[int, float]]:
    return {route: dict(zip(TOKENS, us, strict=True)) for route, us in by_route.items()}


@pytest.mark.parametrize(
    ("measured", "starts"),
    [
        (times(stock=(10, 20, 40, 80)), Starts()),
        (times(stock=(10, 20, 40, 80), exact=(30, 30, 30, 30)), Starts(512)),
        (times(stock=(10, 20, 40, 80), exact=(99, 99, 99, 99)), Starts()),
        (times(stock=(10, 20, 40, 80), exact=(10, 20, 39, 78)), Starts()),  # by 2.5 %
        (times(stock=(10, 20, 40, 80), exact=(10, 20, 38, 77)), Starts(512)),
        (times(stock=(10, 20, 40, 80), fp8=(15, 15, 20, 30)), Starts(None, 256)),
        (times(stock=(10, 20, 40, 80), exact=(30, 30, 30, 30), fp8=(15, 15, 20, 25)), Starts(512, 256)),
        # What beats the stock kernel must beat the other route too, where that serves.
        (times(stock=(10, 20, 40, 80), exact=(30, 30, 30, 30), fp8=(15, 15, 20, 35)), Starts(512, None)),
        (times(stock=(10, 20, 40, 80), exact=(30, 30, 30, 30), fp8=(35, 35, 35, 25)), Starts(512, 1024)),
        # Where it does not serve, its times do not count.
        (times(stock=(50, 20, 40, 80), exact=(1, 30, 30, 30), fp8=(45, 15, 15, 15)), Starts(512, 128)),
    ],
)
def test_a_route_starts_where_it_beats_all_else_that_serves_those_tokens(
    measured: dict[str, dict[int, float]], starts: Starts
) -> None:
    assert measure.MARGIN == 0.03
    assert measure.find_starts(measured) == starts


def test_no_tokens_are_no_start() -> None:
    assert measure.find_starts({"stock": {}, "exact": {}, "fp8": {}}) == Starts()


def test_a_profile_says_where_when_and_how_long() -> None:
    measured = times(stock=(10, 20, 40, 80), exact=(30, 30, 30, 30))
    profile = measure.make_profile(SHAPE, measured, Starts(512, fp8_gemm="torch"), CARD, 3.21)
    first, date, last = profile.source.split(", ")
    assert (first, last) == ("measured: NVIDIA Test GPU", "in 3.2 s")
    assert len(date.split("-")) == 3
    assert profile.starts == {SHAPE: Starts(512, fp8_gemm="torch")}
    assert (profile.card, profile.times_us) == (CARD, {SHAPE: measured})
    assert from_json(to_json(profile), "x") == profile


@pytest.mark.parametrize(
    ("order", "routes"),
    [((), []), (("exact",), ["exact"]), (("fp8", "exact"), ["exact", "fp8"]), (("fp8",), ["fp8"])],
)
def test_the_routes_that_may_be_taken_are_measured(order: Any, routes: list[str]) -> None:
    assert measure.routes_to_measure(SimpleNamespace(routes=order)) == routes  # type: ignore[arg-type]


def test_what_brings_or_builds_a_kernel_is_part_of_the_card(monkeypatch: pytest.MonkeyPatch) -> None:
    def version(name: str) -> str:
        if name == "vllm":
            raise PackageNotFoundError(name)
        return f"{name} 1"

    monkeypatch.setattr(measure, "version", version)
    versions = measure.versions()
    assert (versions["vllm"], versions["triton"]) == ("none", "triton 1")
    assert versions["torch"] == torch.__version__
    assert {"cuda", "vllm-qwen36-plugin"} < set(versions)


class Clock:
    """A GPU that does one thing after another, each as long as the test says."""

    def __init__(self) -> None:
        self.now = 0.0  # milliseconds

    def event(self, *, enable_timing: bool) -> Any:
        assert enable_timing
        clock = self

        class Event:
            def record(self) -> None:
                self.at = clock.now

            def elapsed_time(self, end: Any) -> float:
                return float(end.at - self.at)

        return Event()


class Linear:
    """A linear whose calls take their time, the first of each a hundred times as long."""

    shape = SHAPE
    humming: Any = None

    def __init__(self, clock: Clock) -> None:
        self.clock = clock
        self.gemms: tuple[str, ...] = ("vllm",)
        self.calls: list[tuple[str, int]] = []

    def weight(self, tensors: Any, fp8_scales: Any) -> Any:
        return SimpleNamespace(words=tensors[0], scales=tensors[0], fp8=fp8_scales)

    def stock(self, x: torch.Tensor, tensors: Any) -> None:
        self._take("stock", x, len(x) / 1e3)

    def run(self, route: str, x: torch.Tensor, weight: Any, gemm: str | None) -> None:
        assert weight.fp8 == "scales"
        name = route if gemm is None else f"{route}_{gemm}"
        self._take(name, x, {"exact": 0.3, "fp8": 0.15, "fp8_vllm": 0.15, "fp8_torch": 0.12}[name])

    def _take(self, name: str, x: torch.Tensor, milliseconds: float) -> None:
        assert x.dtype == torch.bfloat16
        assert x.shape[1] == SHAPE.k
        first = (name, len(x)) not in self.calls
        self.calls.append((name, len(x)))
        self.clock.now += milliseconds * (100 if first else 1)


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr(torch.cuda, "Event", clock.event)
    monkeypatch.setattr(torch.cuda, "synchronize", lambda *_: None)

    def sleep(cycles: int) -> None:
        clock.now += cycles / 1e6

    monkeypatch.setattr(torch.cuda, "_sleep", sleep)
    return clock


def test_each_call_is_timed_alone_after_a_first_that_does_not_count(clock: Clock) -> None:
    linear, ticks = Linear(clock), []
    words = torch.zeros(1, dtype=torch.int32)
    measured = measure.time_routes(
        linear,  # type: ignore[arg-type]
        [words],
        "scales",  # type: ignore[arg-type]
        (128, 512),
        ["exact", "fp8"],
        lambda: ticks.append(len(linear.calls)),
    )
    expected = {
        "stock": {128: 128.0, 512: 512.0},
        "exact": {128: 300.0, 512: 300.0},
        "fp8": {128: 150.0, 512: 150.0},
    }
    assert {
        route: {tokens: pytest.approx(us) for tokens, us in by.items()} for route, by in expected.items()
    } == measured
    assert len(ticks) == 2
    # In turns, so that a clock that drifts meets all of them.
    order = [name for name, tokens in linear.calls if tokens == 128]
    assert order == ["stock", "exact", "fp8"] * (len(order) // 3)
    assert len(order) // 3 >= 4


def test_a_route_that_may_not_be_taken_is_not_run(clock: Clock) -> None:
    linear = Linear(clock)
    words = torch.zeros(1, dtype=torch.int32)
    measured = measure.time_routes(linear, [words], None, (128,), [])  # type: ignore[arg-type]
    assert list(measured) == ["stock"]
    assert {name for name, _ in linear.calls} == {"stock"}


def test_each_gemm_that_fp8_may_have_is_timed(clock: Clock) -> None:
    linear = Linear(clock)
    linear.gemms = ("vllm", "torch")
    words = torch.zeros(1, dtype=torch.int32)
    measured = measure.time_routes(linear, [words], "scales", (128,), ["exact", "fp8"])  # type: ignore[arg-type]
    assert measured["fp8_vllm"] == {128: pytest.approx(150)}
    assert measured["fp8_torch"] == {128: pytest.approx(120)}
    assert set(measured) == {"stock", "exact", "fp8_vllm", "fp8_torch"}


def test_a_gemm_that_is_the_only_one_and_not_vllms_is_known_by_its_name(clock: Clock) -> None:
    linear = Linear(clock)
    linear.gemms = ("torch",)
    words = torch.zeros(1, dtype=torch.int32)
    measured = measure.time_routes(linear, [words], "scales", (128,), ["fp8"])  # type: ignore[arg-type]
    assert set(measured) == {"stock", "fp8_torch"}
    # 120 µs for 128.
    assert measure.settle(measured)[1] == Starts(None, 128, "torch")


@pytest.mark.parametrize(
    ("vllm", "torchs", "gemm", "start"),
    [
        ((15, 15, 15, 15), (14, 14, 14, 14), "torch", 256),
        ((15, 15, 15, 15), (16, 16, 16, 16), "vllm", 256),
        # As shares of the stock kernel's time: 0.1 for 1.0 at 128 tokens outweighs 0.2 for 0.1 at 1,024.
        ((1, 15, 15, 20), (10, 15, 15, 10), "vllm", 128),
        ((15, 15, 15, 15), (16, 14, 12, 2), "torch", 256),
    ],
)
def test_fp8_has_the_gemm_that_takes_less_of_the_stock_kernels_time(
    vllm: Any, torchs: Any, gemm: str, start: int
) -> None:
    raw = times(stock=(10, 20, 40, 80), fp8_vllm=vllm, fp8_torch=torchs)
    settled, starts = measure.settle(raw)
    assert starts == Starts(None, start, gemm)  # type: ignore[arg-type]
    assert settled == {**raw, "fp8": raw[f"fp8_{gemm}"]}


def test_times_of_one_gemm_are_left_as_they_are() -> None:
    raw = times(stock=(10, 20, 40, 80), exact=(30, 30, 30, 30), fp8=(15, 15, 15, 15))
    assert measure.settle(raw) == (raw, Starts(512, 256))
