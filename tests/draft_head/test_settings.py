"""What `auto` means where, and what is refused."""

from __future__ import annotations

from typing import Any

import pytest

from vllm_qwen36_plugin.draft_head.settings import DraftSettings, draft_settings
from vllm_qwen36_plugin.errors import OptionsError
from vllm_qwen36_plugin.options import PluginOptions

ADA, AMPERE, TURING = ("cuda", (8, 9)), ("cuda", (8, 6)), ("cuda", (7, 5))
CPU: tuple[str, None] = ("cpu", None)


def decided(section: dict[str, Any], device: tuple[str, Any]) -> DraftSettings:
    return draft_settings(PluginOptions.of({"qwen36": section}), *device)


@pytest.mark.parametrize("device", [ADA, AMPERE])
def test_auto_on_a_gpu_takes_eight_bits_and_a_head_in_four_over_all_tokens_if_it_fits(
    device: tuple[str, Any],
) -> None:
    for section in ({}, {"draft": "auto"}):
        settings = decided(section, device)
        assert settings == DraftSettings("w8", 0, None, "w4", settings.most_of_cache)
        assert settings.precision_of_whole_head == "w4"
        assert settings.most_of_cache == 1 / 16


@pytest.mark.parametrize("device", [TURING, CPU, ("cuda", None)])
def test_auto_elsewhere_leaves_drafts_as_vllm_makes_them(device: tuple[str, Any]) -> None:
    assert decided({}, device).stock


@pytest.mark.parametrize(
    ("section", "vocabulary"),
    [
        ({"draft_vocab": 4096}, 4096),
        ({"draft_vocab_file": "mine.json"}, None),
        ({"draft_vocab": 4096, "draft_vocab_file": "mine.json"}, 4096),
    ],
)
def test_auto_drafts_from_a_part_of_the_vocabulary_where_that_is_asked_for(
    section: dict[str, Any], vocabulary: int | None
) -> None:
    file = section.get("draft_vocab_file")
    settings = decided(section, ADA)
    assert (settings.precision, settings.vocabulary, settings.list_file) == ("w8", vocabulary, file)


@pytest.mark.parametrize("device", [ADA, AMPERE, CPU])
def test_four_bits_come_with_the_usual_vocabulary(device: tuple[str, Any]) -> None:
    assert decided({"draft": "w4"}, device) == DraftSettings("w4", None, None)
    assert decided({"draft": "w4"}, device).precision_of_whole_head == "w4"


@pytest.mark.parametrize(("precision", "fc"), [("bf16", "bf16"), ("fp8", "fp8"), ("w8", "w8"), ("w4", "w8")])
def test_one_linear_has_eight_bits_where_the_others_have_four(precision: Any, fc: str) -> None:
    settings = DraftSettings(precision, 0, None)
    assert settings.precision_for("fc") == fc
    for name in ("layers.0.self_attn.qkv_proj", "layers.0.self_attn.o_proj", "layers.0.mlp.down_proj"):
        assert settings.precision_for(name) == precision


@pytest.mark.parametrize("device", [ADA, CPU])
def test_a_number_of_tokens_is_kept_whatever_the_weights(device: tuple[str, Any]) -> None:
    assert decided({"draft_vocab": 4096}, device).vocabulary == 4096
    assert decided({"draft": "bf16", "draft_vocab": 0}, device).stock


def test_a_list_of_the_users_own_is_used_on_a_cpu_too() -> None:
    settings = decided({"draft_vocab_file": "mine.json"}, CPU)
    assert (settings.vocabulary, settings.list_file) == (None, "mine.json")
    assert not settings.stock


def test_fp8_needs_a_card_that_multiplies_it() -> None:
    assert decided({"draft": "fp8"}, ADA).precision == "fp8"
    for device in (AMPERE, CPU, ("cuda", None)):
        with pytest.raises(OptionsError, match='needs an Ada GPU or a later one; use "w8"'):
            decided({"draft": "fp8"}, device)


@pytest.mark.parametrize(
    "section",
    [
        {"draft": "w3"},
        {"draft_vocab": -1},
        {"draft_vocab": "all"},
        {"draft_vocab": True},
        {"draft_vocab": 0.5},
        {"draft_vocab_file": ""},
    ],
)
def test_options_that_are_none_are_refused_by_name(section: dict[str, Any]) -> None:
    with pytest.raises(OptionsError, match=f'"qwen36.{next(iter(section))}"'):
        PluginOptions.of({"qwen36": section})
