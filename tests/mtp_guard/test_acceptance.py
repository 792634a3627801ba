"""A server whose drafts come to nothing says so once, with what it may be."""

from __future__ import annotations

from collections.abc import Callable
from importlib.metadata import entry_points
from types import SimpleNamespace
from typing import Any

import pytest

pytest.importorskip("vllm")

from tests.tiny_checkpoints import vllm_config
from vllm_qwen36_plugin.mtp_guard.acceptance import AcceptanceWatch, Watch

Shown = Callable[[], str]


def step(drafts: int, accepted: int, tokens: int = 2) -> SimpleNamespace:
    """Scheduler statistics of a step, with vLLM's own class for those of drafts."""
    from vllm.v1.spec_decode.metrics import SpecDecodingStats

    stats = SpecDecodingStats.new(tokens)
    for number in range(drafts):
        stats.observe_draft(num_draft_tokens=tokens, num_accepted_tokens=int(number < accepted))
    return SimpleNamespace(spec_decoding_stats=stats)


def watch(config: Any = None) -> AcceptanceWatch:
    return AcceptanceWatch(vllm_config("a/model") if config is None else config)


def test_drafts_that_are_never_accepted_are_told_of_once(shown: Shown) -> None:
    watched = watch()
    for _ in range(2000):
        watched.record(step(1, 0), None)
    said = shown()
    assert said.count("hardly ever accepted: 0 of 800 draft tokens in 400 drafts") == 1
    assert "a/model" in said
    assert "another fine-tune" in said
    assert "draft_vocab" in said


@pytest.mark.parametrize("accepted", [20, 50])
def test_a_head_that_drafts_is_left_alone(shown: Shown, accepted: int) -> None:
    watched = watch()
    for _ in range(40):
        watched.record(step(50, accepted), None)
    assert shown() == ""


def test_a_good_beginning_does_not_hide_what_follows(shown: Shown) -> None:
    watched = watch()
    for accepted in (50, 0):
        for _ in range(16):
            watched.record(step(50, accepted), None)
    assert shown().count("hardly ever accepted") == 1


def test_few_drafts_are_no_evidence(shown: Shown) -> None:
    watched = watch()
    watched.record(step(399, 0), None)
    assert shown() == ""


@pytest.mark.parametrize(
    "config",
    [
        vllm_config("a/model", method=None),
        vllm_config("a/model", architectures=("EagleLlamaForCausalLM",)),
        vllm_config("a/model", additional={"qwen36": {"mtp_check": "off"}}),
    ],
    ids=["no-drafts", "another-model", "off"],
)
def test_nothing_is_watched_that_was_not_asked_for(shown: Shown, config: Any) -> None:
    watched = watch(config)
    watched.record(step(1000, 0), None)
    assert shown() == ""


@pytest.mark.parametrize("stats", [None, SimpleNamespace(spec_decoding_stats=None)])
def test_steps_without_drafts_are_nothing(shown: Shown, stats: Any) -> None:
    watch().record(stats, None)
    assert shown() == ""


def test_statistics_of_another_shape_turn_it_off_with_a_word(shown: Shown) -> None:
    watched = watch()
    for _ in range(3):
        watched.record(SimpleNamespace(), None)
    assert shown().count("the watch on acceptance is off because") == 1


def test_a_stretch_is_whole_before_it_counts() -> None:
    counted = Watch()
    assert [counted.add(100, 200, 0) for _ in range(4)][-1] == (0, 800, 400)
    assert counted.add(400, 800, 0) is None


def test_vllm_finds_it() -> None:
    from vllm.v1.metrics.loggers import load_stat_logger_plugin_factories

    (point,) = entry_points(group="vllm.stat_logger_plugins", name="qwen36")
    assert point.load() in load_stat_logger_plugin_factories()
