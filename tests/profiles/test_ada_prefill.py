"""The starts that ship for Ada cards are derived, err towards vLLM's kernel, and give way to others."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from itertools import pairwise

import pytest

from gptq_hybrid.hooks import get_plugin_manager, hookimpl
from vllm_qwen36_plugin.hookspecs import shipped_profiles
from vllm_qwen36_plugin.prefill.profile import ROUTES, Route, ShippedProfile, Starts, shipped_for
from vllm_qwen36_plugin.prefill.shape import Shape
from vllm_qwen36_plugin.profiles.ada_prefill import (
    ADA_PREFILL_PROFILES,
    MARGIN,
    SAFETY,
    DerivedProfile,
    Figures,
    costs,
    start,
)
from vllm_qwen36_plugin.tune.prefill.shapes import read_linears

SHAPES = [Shape("marlin", kind.k, kind.n, 4, 128, "bfloat16") for kind in read_linears(None)]
NAMES = {
    "L40S": "NVIDIA L40S",
    "RTX 6000 Ada": "NVIDIA RTX 6000 Ada Generation",
    "RTX 4090": "NVIDIA GeForce RTX 4090",
}
# All but exact on an RTX 4090.
CASES = [
    pytest.param(profile, shape, route, id=f"{profile.device_names[0]}-{shape.k}x{shape.n}-{route}")
    for profile in ADA_PREFILL_PROFILES
    for shape in SHAPES
    for route in ROUTES
    if (profile.device_names, route) != (("RTX 4090",), "exact")
]


def seconds(route: Route, shape: Shape, card: Figures, tokens: int) -> tuple[float, float, float]:
    """Per value of W: the stock kernel, what a route pays once, and the route as a whole."""
    stock, once, each = costs(route, shape, card)
    return stock * tokens, once, once + each * tokens


@pytest.mark.parametrize("name", NAMES)
def test_each_card_is_known_by_the_name_its_driver_reports(name: str) -> None:
    profile = shipped_for(NAMES[name], shipped_profiles())
    assert profile is not None
    assert profile.device_names == (name,)
    assert profile.source.startswith("derived: no Ada card was measured")


@pytest.mark.parametrize(
    "gpu", ["NVIDIA L40", "NVIDIA H100 80GB HBM3", "NVIDIA RTX A6000", "NVIDIA GeForce RTX 5090"]
)
def test_other_cards_are_not_taken_for_one(gpu: str) -> None:
    assert shipped_for(gpu, ADA_PREFILL_PROFILES) is None


@pytest.mark.parametrize(("profile", "shape", "route"), CASES)
def test_from_its_start_on_a_route_wins_even_if_it_pays_twice_for_writing(
    profile: DerivedProfile, shape: Shape, route: Route
) -> None:
    tokens = getattr(profile.starts(shape), route)
    assert tokens is not None
    for count in (tokens, 2 * tokens, 8 * tokens):
        stock, once, whole = seconds(route, shape, profile.figures, count)
        assert whole + once <= stock * (1 + 1e-9)
        assert whole <= stock * (1 - MARGIN)


@pytest.mark.parametrize(("profile", "shape", "route"), CASES)
def test_from_its_start_on_a_route_wins_even_if_marlin_is_half_as_far_behind(
    profile: DerivedProfile, shape: Shape, route: Route
) -> None:
    tokens = getattr(profile.starts(shape), route)
    assert tokens is not None
    stock, once, each = costs(route, shape, profile.figures)
    assert once + each * tokens <= (stock + each) / 2 * tokens * (1 + 1e-9)


@pytest.mark.parametrize(("profile", "shape", "route"), CASES)
def test_a_start_is_not_much_later_than_twice_the_break_even(
    profile: DerivedProfile, shape: Shape, route: Route
) -> None:
    tokens = getattr(profile.starts(shape), route)
    assert tokens is not None
    stock, once, each = costs(route, shape, profile.figures)
    assert tokens % 256 == 0
    assert 0 <= tokens - SAFETY * once / (stock - each) < 256


def test_exact_has_no_head_room_on_a_4090() -> None:
    (profile,) = [profile for profile in ADA_PREFILL_PROFILES if profile.device_names == ("RTX 4090",)]
    assert {profile.starts(shape).exact for shape in SHAPES} == {None}
    assert None not in {profile.starts(shape).fp8 for shape in SHAPES}


def test_a_start_that_a_card_as_fast_as_its_data_sheet_would_have() -> None:
    """By hand: 2.515625 bytes at 604.8 GB/s, twice, over 2 operations at 362 TFLOP/s a each, times 1 / 0.82 - 1."""
    (profile,) = [profile for profile in ADA_PREFILL_PROFILES if profile.device_names == ("L40S",)]
    tokens = 2 * (2.515625 / 604.8e9) / (2 / 362e12 * (1 / 0.82 - 1))
    assert 6656 < tokens < 6912
    assert profile.starts(SHAPES[0]).exact == 6912


FIGURES = Figures(bandwidth=900e9, dense=360e12, fp8=720e12)


@pytest.mark.parametrize("route", ROUTES)
def test_more_bandwidth_never_means_a_later_start(route: Route) -> None:
    starts = [start(route, SHAPES[0], replace(FIGURES, bandwidth=b * 1e9)) for b in range(400, 4000, 200)]
    assert all(slow is not None and fast is not None and fast <= slow for slow, fast in pairwise(starts))
    assert starts[-1] != starts[0]


def test_a_marlin_closer_to_the_dense_gemm_never_means_an_earlier_start_and_at_its_speed_none() -> None:
    shares = [share / 100 for share in range(50, 101, 2)]
    starts = [start("exact", SHAPES[0], replace(FIGURES, marlin=share)) for share in shares]
    numbers = [float("inf") if tokens is None else tokens for tokens in starts]
    assert numbers == sorted(numbers)
    assert starts[0] is not None
    assert starts[-1] is None


def test_a_faster_fp8_never_means_a_later_start_and_one_no_faster_none() -> None:
    starts = [start("fp8", SHAPES[0], replace(FIGURES, fp8=rate * 1e12)) for rate in range(300, 1500, 100)]
    numbers = [float("inf") if tokens is None else tokens for tokens in starts]
    assert numbers == sorted(numbers, reverse=True)
    assert starts[0] is None
    assert starts[-1] is not None


def test_quantizing_tokens_weighs_more_where_columns_are_few() -> None:
    wide, narrow = (Shape("marlin", 5120, n, 4, 128, "bfloat16") for n in (16384, 5120))
    starts = start("fp8", wide, FIGURES), start("fp8", narrow, FIGURES)
    assert None not in starts
    assert starts[0] < starts[1]  # type: ignore[operator]


def test_a_weight_of_several_parts_pays_for_a_copy_of_the_result() -> None:
    """Up to 26,214 columns of 5,120 bytes fit the default scratch."""
    fits, parts = (Shape("marlin", 5120, n, 4, 128, "bfloat16") for n in (26176, 26240))
    one, several = start("fp8", fits, FIGURES), start("fp8", parts, FIGURES)
    assert one is not None
    assert several is not None
    assert several > 1.5 * one
    assert start("exact", fits, FIGURES) == start("exact", parts, FIGURES)


def test_too_small_a_gain_is_none() -> None:
    """At its start a route wins half of what it can ever win: 2 % of 4."""
    assert start("exact", SHAPES[0], replace(FIGURES, marlin=0.96)) is None
    assert start("exact", SHAPES[0], replace(FIGURES, marlin=0.93)) is not None


@pytest.mark.parametrize("change", [{"layout": "machete"}, {"bits": 8}])
def test_what_no_figure_is_known_of_stays_with_vllm(change: dict[str, object]) -> None:
    shape = replace(SHAPES[0], **change)  # type: ignore[arg-type]
    assert {profile.starts(shape) for profile in ADA_PREFILL_PROFILES} == {Starts()}


class House:
    """A third party's profile of a card that ships here too."""

    device_names = ("RTX 4090",)
    source = "measured: our RTX 4090"

    def starts(self, shape: Shape) -> Starts:
        return Starts(exact=5)


class Contribution:
    @hookimpl
    def qwen36_prefill_profiles(self) -> list[ShippedProfile]:
        return [House()]


@pytest.fixture(params=["before ours", "after ours"])
def third_party(request: pytest.FixtureRequest) -> Iterator[None]:
    """Another distribution, whichever of the two is loaded first."""
    manager = get_plugin_manager()
    ours = manager.get_plugin("vllm_qwen36_plugin")
    theirs = Contribution()
    if request.param == "before ours":
        manager.unregister(ours, "vllm_qwen36_plugin")
        manager.register(theirs)
        manager.register(ours, "vllm_qwen36_plugin")
    else:
        manager.register(theirs)
    yield
    manager.unregister(theirs)


@pytest.mark.usefixtures("third_party")
def test_a_third_partys_profile_of_the_same_card_wins() -> None:
    profile = shipped_for(NAMES["RTX 4090"], shipped_profiles())
    assert profile is not None
    assert profile.source == House.source
    assert profile.starts(SHAPES[0]) == Starts(exact=5)
    ours = shipped_for(NAMES["L40S"], shipped_profiles())
    assert ours is not None
    assert ours.source.startswith("derived")
