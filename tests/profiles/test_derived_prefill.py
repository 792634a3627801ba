"""The starts that ship for Ada and Ampere are derived, err towards vLLM's kernel, and give way to others."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from itertools import pairwise

import pytest

from gptq_hybrid.hooks import get_plugin_manager, hookimpl
from vllm_qwen36_plugin.hookspecs import shipped_profiles
from vllm_qwen36_plugin.prefill.profile import Route, ShippedProfile, Starts, shipped_for
from vllm_qwen36_plugin.prefill.shape import Shape
from vllm_qwen36_plugin.profiles import page
from vllm_qwen36_plugin.profiles.derived_prefill import (
    DERIVED_PREFILL_PROFILES,
    LAST,
    MARGIN,
    ROUTES,
    SAFETY,
    STEP,
    DerivedProfile,
    Figures,
    Rates,
    costs,
    rate_at,
    share,
    start,
)
from vllm_qwen36_plugin.tune.prefill.shapes import read_linears

SHAPES = [Shape("marlin", kind.k, kind.n, 4, 128, "bfloat16") for kind in read_linears(None)]
NAMES = {
    "L40S": "NVIDIA L40S",
    "RTX 6000 Ada": "NVIDIA RTX 6000 Ada Generation",
    "RTX 4090": "NVIDIA GeForce RTX 4090",
    "A100-SXM4-80GB": "NVIDIA A100-SXM4-80GB",
    "A100-PCIE-40GB": "NVIDIA A100-PCIE-40GB",
    "RTX 3090": "NVIDIA GeForce RTX 3090",
}
CASES = [
    pytest.param(profile, shape, route, id=f"{profile.device_names[0]}-{shape.k}x{shape.n}-{route}")
    for profile in DERIVED_PREFILL_PROFILES
    for shape in SHAPES
    for route in ROUTES
    if start(route, shape, profile.figures) is not None
]


def profile_of(name: str) -> DerivedProfile:
    (profile,) = [profile for profile in DERIVED_PREFILL_PROFILES if name in profile.device_names]
    return profile


@pytest.mark.parametrize("name", NAMES)
def test_each_card_is_known_by_the_name_its_driver_reports(name: str) -> None:
    profile = shipped_for(NAMES[name], shipped_profiles())
    assert profile is not None
    assert name in profile.device_names
    assert profile.source.startswith("derived: no such card was measured")


@pytest.mark.parametrize(
    "gpu",
    ["NVIDIA L40", "NVIDIA H100 80GB HBM3", "NVIDIA RTX A6000", "NVIDIA GeForce RTX 5090", "NVIDIA A10"],
)
def test_other_cards_are_not_taken_for_one(gpu: str) -> None:
    assert shipped_for(gpu, DERIVED_PREFILL_PROFILES) is None


@pytest.mark.parametrize(("profile", "shape", "route"), CASES)
def test_from_its_start_on_a_route_wins_even_if_writing_takes_half_as_long_again(
    profile: DerivedProfile, shape: Shape, route: Route
) -> None:
    first = getattr(profile.starts(shape), route)
    for tokens in (first, first + STEP, 2 * first, LAST):
        for rates in profile.figures.rates:
            found = costs(route, shape, profile.figures.bandwidth, rates, tokens)
            assert found is not None
            stock, once, each = found
            assert SAFETY * once + each * tokens <= stock * tokens * (1 + 1e-9)
            assert once + each * tokens <= stock * tokens * (1 - MARGIN)


@pytest.mark.parametrize(("profile", "shape", "route"), CASES)
def test_a_tile_of_tokens_before_it_would_not_by_one_of_the_cards_rates(
    profile: DerivedProfile, shape: Shape, route: Route
) -> None:
    before = getattr(profile.starts(shape), route) - STEP
    wins = []
    for rates in profile.figures.rates:
        found = costs(route, shape, profile.figures.bandwidth, rates, before)
        assert found is not None
        stock, once, each = found
        wins.append(
            SAFETY * once + each * before <= stock * before
            and once + each * before <= stock * before * (1 - MARGIN)
        )
    assert not all(wins)


@pytest.mark.parametrize("name", ["RTX 4090", "RTX 3090"])
def test_exact_has_no_head_room_where_marlin_reaches_the_rate_of_the_tensor_cores(name: str) -> None:
    assert {profile_of(name).starts(shape).exact for shape in SHAPES} == {None}


def test_fp8_pays_on_a_4090_from_about_a_thousand_tokens_on_and_on_ampere_never() -> None:
    """By hand, gate_up: 1.515625 bytes at 705.6 GB/s, 1.5 times, over 2 / 170 TFLOP/s less 2 / 260 and the rest."""
    fp8 = [profile_of("RTX 4090").starts(shape).fp8 for shape in SHAPES]
    assert all(tokens is not None and 896 <= tokens <= 1024 for tokens in fp8)
    even = (1.515625 / 705.6e9) / (2 / 170e12 - 2 / 260e12 - 3 / 34816 / 705.6e9)
    assert 768 < 1.5 * even < 896
    for name in ("A100-SXM4-80GB", "RTX 3090"):
        assert {profile_of(name).starts(shape).fp8 for shape in SHAPES} == {None}


def test_shares_are_those_that_the_published_rates_came_from() -> None:
    """All linears of a pass on an RTX 4090 and an A100, as computed when the rates were read."""
    for name, route, tokens, expected in (
        ("RTX 4090", "fp8", 2048, 0.73), ("RTX 4090", "exact", 2048, 1.22), ("A100-SXM4-80GB", "exact", 4096, 0.93)
    ):  # fmt: skip
        figures = profile_of(name).figures
        (rates,) = figures.rates
        found = page.share_of_a_pass(route, figures.bandwidth, rates, tokens)  # type: ignore[arg-type]
        assert found == pytest.approx(expected, abs=0.006)


def test_a_rate_between_two_published_ones_is_read_in_line_and_kept_beyond_them() -> None:
    rate = {512: 100.0, 1024: 200.0, 4096: 500.0}
    expected = {1: 100.0, 512: 100.0, 768: 150.0, 1024: 200.0, 2048: 300.0, 4096: 500.0, 9999: 500.0}
    assert {tokens: rate_at(rate, tokens) for tokens in expected} == expected
    assert rate_at(7.0, 1) == 7.0


RATES = Rates(marlin=200e12, dense=300e12, fp8=600e12)
FIGURES = Figures(900e9, (RATES,))


@pytest.mark.parametrize("route", ROUTES)
def test_more_bandwidth_never_means_a_later_start(route: Route) -> None:
    starts = [start(route, SHAPES[0], replace(FIGURES, bandwidth=b * 1e9)) for b in range(400, 4000, 200)]
    assert all(slow is not None and fast is not None and fast <= slow for slow, fast in pairwise(starts))
    assert starts[-1] != starts[0]


@pytest.mark.parametrize("route", ROUTES)
def test_a_faster_gemm_never_means_a_later_start_and_one_no_faster_than_marlin_none(route: Route) -> None:
    field = "dense" if route == "exact" else "fp8"
    starts = [
        start(route, SHAPES[0], Figures(900e9, (replace(RATES, **{field: rate * 1e12}),)))  # type: ignore[arg-type]
        for rate in range(200, 1000, 50)
    ]
    numbers = [float("inf") if tokens is None else tokens for tokens in starts]
    assert numbers == sorted(numbers, reverse=True)
    assert starts[0] is None
    assert starts[-1] is not None


def test_of_several_rates_the_latest_start_counts() -> None:
    slow = replace(RATES, dense=230e12)
    alone = [start("exact", SHAPES[0], Figures(900e9, (rates,))) for rates in (RATES, slow)]
    assert alone[0] is not None
    assert alone[1] is not None
    assert alone[0] < alone[1]
    assert start("exact", SHAPES[0], Figures(900e9, (slow, RATES))) == alone[1]
    never = replace(RATES, dense=200e12)
    assert start("exact", SHAPES[0], Figures(900e9, (RATES, never))) is None


def test_quantizing_tokens_weighs_more_where_columns_are_few() -> None:
    wide, narrow = (Shape("marlin", 5120, n, 4, 128, "bfloat16") for n in (34816, 512))
    shares = [share("fp8", shape, 900e9, RATES, 4096) for shape in (wide, narrow)]
    assert None not in shares
    assert shares[0] < shares[1]  # type: ignore[operator]


def test_too_small_a_gain_is_none() -> None:
    for dense, taken in ((204e12, False), (230e12, True)):
        found = start("exact", SHAPES[0], Figures(9000e9, (replace(RATES, dense=dense),)))
        assert (found is not None) is taken


@pytest.mark.parametrize("change", [{"layout": "machete"}, {"bits": 8}])
def test_what_no_figure_is_known_of_stays_with_vllm(change: dict[str, object]) -> None:
    shape = replace(SHAPES[0], **change)  # type: ignore[arg-type]
    assert {profile.starts(shape) for profile in DERIVED_PREFILL_PROFILES} == {Starts()}


def test_the_pages_linears_are_those_of_the_27b() -> None:
    counted = {
        Shape("marlin", kind.k, kind.n, kind.bits, kind.group_size, "bfloat16"): kind.count
        for kind in read_linears(None)
    }
    assert counted == page.LINEARS


def test_the_page_is_what_the_formulas_give() -> None:
    assert page.PAGE.read_text() == page.text(), "run python -m vllm_qwen36_plugin.profiles.page"
    for profile in DERIVED_PREFILL_PROFILES:
        assert profile.device_names[0] in page.text()


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
