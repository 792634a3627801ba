"""What `auto` means where, and what is refused."""

from __future__ import annotations

from typing import Any

import pytest

from vllm_qwen36_plugin.drafts.settings import DraftSettings, settings_for
from vllm_qwen36_plugin.errors import OptionsError
from vllm_qwen36_plugin.options import PluginOptions

ADA, AMPERE = ("cuda", (8, 9)), ("cuda", (8, 6))
CPU: tuple[str, None] = ("cpu", None)


def found(section: dict[str, Any], device: tuple[str, Any]) -> DraftSettings:
    return settings_for(PluginOptions.of({"qwen36": section}), *device)


@pytest.mark.parametrize("device", [ADA, AMPERE, CPU])
def test_auto_leaves_drafts_as_vllm_makes_them(device: tuple[str, Any]) -> None:
    assert found({}, device).stock


@pytest.mark.parametrize("device", [ADA, AMPERE, CPU])
def test_four_bits_come_with_the_usual_vocabulary(device: tuple[str, Any]) -> None:
    assert found({"draft": "w4"}, device) == DraftSettings("w4", None, None)


@pytest.mark.parametrize("device", [ADA, CPU])
def test_a_number_of_tokens_is_kept_whatever_the_weights(device: tuple[str, Any]) -> None:
    assert found({"draft_vocab": 4096}, device).vocabulary == 4096
    assert found({"draft": "bf16", "draft_vocab": 0}, device).stock


def test_a_list_of_the_users_own_is_used_on_a_cpu_too() -> None:
    asked = found({"draft_vocab_file": "mine.json"}, CPU)
    assert (asked.vocabulary, asked.path) == (None, "mine.json")
    assert not asked.stock


def test_fp8_needs_a_card_that_multiplies_it() -> None:
    assert found({"draft": "fp8"}, ADA).form == "fp8"
    for device in (AMPERE, CPU, ("cuda", None)):
        with pytest.raises(OptionsError, match='needs an Ada GPU or a later one; use "w8"'):
            found({"draft": "fp8"}, device)


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
