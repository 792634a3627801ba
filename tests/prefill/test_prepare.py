"""What loading a layer finds out, in which order it is looked for, and what fails quietly."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("triton")

from vllm_qwen36_plugin.prefill import measure, prepare  # noqa: E402
from vllm_qwen36_plugin.prefill.profile import Profile, Starts, cache_path, read, write  # noqa: E402
from vllm_qwen36_plugin.prefill.settings import UNMEASURED  # noqa: E402
from vllm_qwen36_plugin.prefill.shape import Shape  # noqa: E402

from .fake_gpu import FakeGpu, Shipped  # noqa: E402
from .loading import AUTO, OTHER, SHAPE, Model  # noqa: E402

pytestmark = pytest.mark.usefixtures("clean")

Shown = Callable[[], str]
MEASURED = Starts(512)
FP8 = replace(AUTO, mode="fp8")


def profile_file(
    path: Path, starts: dict[Shape, Starts], times: Any = None, source: str = "measured: x"
) -> Path:
    write(path, Profile(source, starts, None, times or {}))
    return path


def cache_file(gpu: FakeGpu) -> Path:
    return cache_path(gpu.card(torch.device("cpu"), 1))


def whole(tokens: int, *names: str) -> dict[str, dict[int, float]]:
    return {name: {128: 1.0, tokens: 1.0} for name in ("stock", *names)}


def test_the_users_profile_goes_before_all_others(gpu: FakeGpu, tmp_path: Path) -> None:
    gpu.shipped = [Shipped(Starts(1))]
    profile_file(cache_file(gpu), {SHAPE: Starts(2)})
    user = profile_file(tmp_path / "mine.json", {SHAPE: Starts(3)}, source="measured: mine")
    model = Model(replace(AUTO, profile=str(user)))
    assert model.load().starts == Starts(3)
    assert gpu.measured == []
    assert model.preparation.source == "measured: mine"


def test_what_was_measured_here_before_goes_before_measuring(gpu: FakeGpu) -> None:
    gpu.shipped = [Shipped(Starts(1))]
    profile_file(cache_file(gpu), {SHAPE: Starts(2)}, source="measured: before")
    model = Model()
    assert model.load().starts == Starts(2)
    assert gpu.measured == []
    assert model.preparation.source == "measured: before"


def test_measuring_goes_before_what_ships_and_is_kept_for_the_next_start(gpu: FakeGpu) -> None:
    gpu.shipped = [Shipped(Starts(1))]
    model = Model()
    assert model.load().starts == MEASURED
    assert gpu.measured == [(SHAPE, list(measure.TOKENS), ["exact"])]
    assert model.preparation.source.startswith("measured: NVIDIA Test GPU, ")
    profile = read(cache_file(gpu))
    assert profile.starts == {SHAPE: MEASURED}
    assert profile.card == gpu.card(torch.device("cpu"), 1)
    assert sorted(profile.times_us[SHAPE]) == ["exact", "stock"]

    assert Model().load().starts == MEASURED
    assert len(gpu.measured) == 1


def test_shapes_measured_one_after_another_are_all_kept(gpu: FakeGpu) -> None:
    model = Model()
    model.load(SHAPE)
    model.load(OTHER)
    assert set(read(cache_file(gpu)).starts) == {SHAPE, OTHER}
    again = Model()
    again.load(OTHER)
    again.load(SHAPE)
    assert len(gpu.measured) == 2


@pytest.mark.parametrize(("there", "gemm"), [(("vllm", "torch"), "torch"), (("vllm",), "vllm")])
def test_a_profiles_gemm_is_taken_where_there_is_one(gpu: FakeGpu, there: tuple[str, ...], gemm: str) -> None:
    gpu.gemms = there
    profile_file(cache_file(gpu), {SHAPE: Starts(512, 256, "torch")})
    assert Model(FP8).load().starts == Starts(512, 256, gemm)  # type: ignore[arg-type]
    assert gpu.measured == []


def test_the_gemm_that_measured_best_is_kept_for_the_next_start(
    gpu: FakeGpu, monkeypatch: pytest.MonkeyPatch
) -> None:
    gpu.gemms = ("vllm", "torch")

    def time_routes(linear: Any, tensors: Any, scales: Any, counts: Any, routes: Any) -> measure.Times:
        assert (linear.gemms, routes) == (gpu.gemms, ["exact", "fp8"])
        times = FakeGpu().time_routes(linear, tensors, scales, counts, ["exact", "fp8"])
        return times | {
            "fp8_vllm": times["fp8"],
            "fp8_torch": {tokens: us * 0.9 for tokens, us in times.pop("fp8").items()},
        }

    monkeypatch.setattr(measure, "time_routes", time_routes)
    assert Model(FP8).load().starts == Starts(512, 256, "torch")
    assert read(cache_file(gpu)).starts == {SHAPE: Starts(512, 256, "torch")}


def test_another_driver_or_scratch_is_measured_anew(gpu: FakeGpu) -> None:
    Model().load()
    gpu.driver = "2"
    Model().load()
    Model(replace(AUTO, scratch_bytes=2 << 20)).load()
    assert len(gpu.measured) == 3
    gpu.driver = "1"
    Model().load()
    assert len(gpu.measured) == 3


def test_no_more_tokens_are_measured_than_may_come(gpu: FakeGpu) -> None:
    Model(max_tokens=1000).load()
    assert [tokens for _, tokens, _ in gpu.measured] == [[128, 256, 384, 512, 768]]


def test_a_profile_of_too_few_tokens_is_measured_again(gpu: FakeGpu) -> None:
    profile_file(cache_file(gpu), {SHAPE: Starts()}, {SHAPE: whole(512, "exact")})
    assert Model(max_tokens=512).load().starts == Starts()
    assert gpu.measured == []
    assert Model(max_tokens=8192).load().starts == MEASURED
    assert len(gpu.measured) == 1
    assert read(cache_file(gpu)).starts == {SHAPE: MEASURED}


def test_a_profile_without_a_wanted_path_is_measured_again(gpu: FakeGpu) -> None:
    profile_file(cache_file(gpu), {SHAPE: Starts(2)}, {SHAPE: whole(8192, "exact")})
    assert Model(FP8).load().starts == Starts(512, 256)
    assert gpu.measured == [(SHAPE, list(measure.TOKENS), ["exact", "fp8"])]


def test_a_start_of_fewer_tokens_than_are_worth_measuring_leaves_the_stock_kernel(gpu: FakeGpu) -> None:
    """Another such start can follow, and one with more tokens."""
    assert Model(max_tokens=64).load().starts == Starts()
    assert Model(max_tokens=64).load().starts == Starts()
    assert Model(max_tokens=8192).load().starts == MEASURED


def test_a_users_profile_without_the_shape_is_not_completed_by_measuring(
    gpu: FakeGpu, tmp_path: Path
) -> None:
    gpu.shipped = [Shipped(Starts(7))]
    user = profile_file(tmp_path / "mine.json", {OTHER: Starts(3)})
    model = Model(replace(AUTO, profile=str(user)))
    assert model.load(SHAPE).starts == Starts(7)
    assert model.load(OTHER).starts == Starts(3)
    assert gpu.measured == []
    assert not cache_file(gpu).exists()


def test_what_ships_is_next_where_measuring_fails_which_is_said_once(gpu: FakeGpu, shown: Shown) -> None:
    gpu.broken = torch.OutOfMemoryError("no memory left")
    gpu.shipped = [Shipped(Starts(7), source="derived: a"), Shipped(Starts(8), ("Other GPU",))]
    model = Model()
    assert model.load(SHAPE).starts == Starts(7)
    assert model.load(OTHER).starts == Starts(7)
    assert model.preparation.source == "derived: a"
    assert len(gpu.measured) == 2
    (line,) = shown().splitlines()
    assert line.startswith("WARNING vllm-qwen36-plugin: prefill could not be measured on this GPU: ")
    assert "no memory left" in line
    assert not cache_file(gpu).exists()


def test_start_up_measures_no_longer_than_it_may(gpu: FakeGpu, monkeypatch: pytest.MonkeyPatch) -> None:
    gpu.shipped = [Shipped(Starts(7))]
    clock = iter(range(0, 1000, 6))
    monkeypatch.setattr(prepare, "time", SimpleNamespace(perf_counter=lambda: float(next(clock))))
    model = Model()
    shapes = [Shape("marlin", 64, 64 * width, 4, -1, "bfloat16") for width in (1, 2, 3)]
    assert [model.load(shape).starts for shape in shapes] == [MEASURED, MEASURED, Starts(7)]
    assert prepare.BUDGET == 10
    assert model.preparation.seconds == 12
    # What is left is measured at the next start.
    assert [Model().load(shape).starts for shape in shapes] == [MEASURED] * 3


@pytest.mark.parametrize(
    ("mode", "starts"), [("auto", Starts()), ("exact", Starts(UNMEASURED, UNMEASURED, a8=UNMEASURED))]
)
def test_where_nothing_is_known_only_a_path_asked_for_by_name_is_taken(
    gpu: FakeGpu, mode: Any, starts: Starts
) -> None:
    gpu.broken = RuntimeError("no")
    gpu.shipped = [Shipped(Starts(7), ("Other GPU",))]
    model = Model(replace(AUTO, mode=mode))
    linear = model.load()
    assert linear.starts == starts
    assert linear.route_for(UNMEASURED) == ("exact" if mode == "exact" else None)
    assert model.preparation.source == ""


@pytest.mark.parametrize("content", ["", "{}", '{"format": 99}'])
def test_a_spoilt_cache_is_measured_again(gpu: FakeGpu, shown: Shown, content: str) -> None:
    cache_file(gpu).parent.mkdir(parents=True)
    cache_file(gpu).write_text(content)
    assert Model().load().starts == MEASURED
    assert str(cache_file(gpu)) in shown()
    assert read(cache_file(gpu)).starts == {SHAPE: MEASURED}


def test_a_cache_that_cannot_be_written_is_said_once_and_costs_nothing_else(
    gpu: FakeGpu, shown: Shown, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("QWEN36_CACHE", str(tmp_path / "file" / "below"))
    model = Model()
    assert model.load(SHAPE).starts == MEASURED
    assert model.load(OTHER).starts == MEASURED
    (line,) = shown().splitlines()
    assert line.startswith("WARNING vllm-qwen36-plugin: the profile of this GPU is not kept: ")
    assert str(tmp_path / "file") in line


def test_a_cache_that_may_not_be_read_is_measured_again(
    gpu: FakeGpu, monkeypatch: pytest.MonkeyPatch
) -> None:
    def forbidden(self: Path) -> bool:
        raise PermissionError(13, "Permission denied", str(self))

    monkeypatch.setattr(Path, "is_file", forbidden)
    assert Model().load().starts == MEASURED


def test_a_user_without_a_home_is_served_all_the_same(
    gpu: FakeGpu, shown: Shown, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As in a container that runs under a user id of its own."""
    for name in ("QWEN36_CACHE", "XDG_CACHE_HOME"):
        monkeypatch.delenv(name, raising=False)

    def no_home() -> Path:
        raise RuntimeError("Could not determine home directory.")

    monkeypatch.setattr(Path, "home", no_home)
    assert Model().load().starts == MEASURED
    (line,) = shown().splitlines()
    assert "the profile of this GPU is not kept" in line
    assert "QWEN36_CACHE" in line


def test_a_users_profile_that_cannot_be_read_is_named(gpu: FakeGpu, shown: Shown, tmp_path: Path) -> None:
    gpu.shipped = [Shipped(Starts(7))]
    assert Model(replace(AUTO, profile=str(tmp_path / "gone.json"))).load().starts == Starts(7)
    assert str(tmp_path / "gone.json") in shown()
