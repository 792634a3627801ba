"""Where profiles are kept, and those that ship."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest

from gptq_hybrid.hooks import get_plugin_manager, hookimpl
from vllm_qwen36_plugin.prefill.profile import Card, Starts, cache_path, shipped_for
from vllm_qwen36_plugin.prefill.shape import Shape

GATE_UP = Shape("marlin", 5120, 34816, 4, 128, "bfloat16")
DOWN = Shape("marlin", 17408, 5120, 4, 128, "bfloat16")
CARD = Card("NVIDIA L40S", "580.1", {"torch": "2.11", "vllm": "0.26"}, 128)


@pytest.mark.parametrize(
    "change",
    [
        {"gpu": "NVIDIA L40"},
        {"driver": "580.2"},
        {"scratch_mib": 64},
        {"versions": {"torch": "2.12", "vllm": "0.26"}},
        {"versions": {"torch": "2.11"}},
        {"versions": {"torch": "2.11", "vllm": "0.26", "triton": "3.6"}},
    ],
)
def test_every_part_of_a_card_makes_another_file_of_it(change: dict[str, Any]) -> None:
    assert cache_path(replace(CARD, **change)) != cache_path(CARD)
    assert replace(CARD, **change).digest != CARD.digest


def test_the_order_of_versions_makes_no_other_file() -> None:
    assert cache_path(replace(CARD, versions={"vllm": "0.26", "torch": "2.11"})) == cache_path(CARD)


def test_the_cache_is_where_the_user_wants_it(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.delenv("QWEN36_CACHE", raising=False)
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    name = f"NVIDIA-L40S-{CARD.digest}.json"
    assert cache_path(CARD) == tmp_path / "home" / ".cache" / "qwen36" / "prefill" / name
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    assert cache_path(CARD) == tmp_path / "xdg" / "qwen36" / "prefill" / name
    monkeypatch.setenv("QWEN36_CACHE", str(tmp_path / "own"))
    assert cache_path(CARD) == tmp_path / "own" / "prefill" / name


def test_a_gpus_name_cannot_leave_the_cache(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("QWEN36_CACHE", str(tmp_path))
    path = cache_path(replace(CARD, gpu="../../RTX 6000/Ada "))
    assert path.parent == tmp_path / "prefill"
    assert path.name.startswith("RTX-6000-Ada-")


@dataclass(frozen=True)
class Shipped:
    device_names: tuple[str, ...]
    source: str = "derived: by hand"

    def starts(self, shape: Shape) -> Starts:
        return Starts(768)


def test_the_last_that_fits_a_card_is_taken() -> None:
    ours, other, theirs = Shipped(("L40S", "L40")), Shipped(("RTX 4090",)), Shipped(("L40S",))
    assert shipped_for("NVIDIA L40S", [ours, other]) is ours
    assert shipped_for("NVIDIA L40S", [ours, other, theirs]) is theirs
    assert shipped_for("NVIDIA L40", [ours, other, theirs]) is ours
    assert shipped_for("NVIDIA H200", [ours, other, theirs]) is None
    assert shipped_for("NVIDIA H200", []) is None


class ThirdParty:
    @hookimpl
    def qwen36_prefill_profiles(self) -> list[Shipped]:
        return [Shipped(("Test GPU",), "measured: elsewhere"), Shipped(("Another GPU",))]


@pytest.fixture
def third_party() -> Iterator[None]:
    plugin = ThirdParty()
    get_plugin_manager().register(plugin)
    yield
    get_plugin_manager().unregister(plugin)


@pytest.mark.usefixtures("third_party")
def test_another_package_can_ship_profiles_which_come_after_ours() -> None:
    from vllm_qwen36_plugin.hookspecs import shipped_profiles

    assert [profile.source for profile in shipped_profiles()][-2:] == [
        "measured: elsewhere",
        "derived: by hand",
    ]
    assert [profile.source for profile in shipped_profiles()].count("measured: elsewhere") == 1
    profile = shipped_for("NVIDIA Test GPU", shipped_profiles())
    assert profile is not None
    assert profile.source == "measured: elsewhere"


def test_each_that_we_ship_says_where_it_comes_from_and_knows_the_27b() -> None:
    from vllm_qwen36_plugin.hookspecs import shipped_profiles

    for profile in shipped_profiles():
        assert profile.device_names
        assert profile.source.startswith(("measured: ", "derived: "))
        for shape in (GATE_UP, DOWN):
            starts = profile.starts(shape)
            assert all(start is None or start > 0 for start in (starts.exact, starts.fp8))
