"""The options section of ``--additional-config``."""

from __future__ import annotations

from typing import Any

import pytest

from vllm_qwen36_plugin.errors import OptionsError
from vllm_qwen36_plugin.options import PluginOptions


@pytest.mark.parametrize("config", [None, {}, {"other": 1}, {"qwen36": {}}, object()])
def test_defaults_apply_without_a_section(config: Any) -> None:
    assert PluginOptions.of(config) == PluginOptions(
        mtp_check="on",
        act_order_check="on",
        prefill="auto",
        prefill_scratch_mib=128,
        prefill_profile=None,
    )


def test_the_check_can_be_switched_off() -> None:
    assert PluginOptions.of({"qwen36": {"mtp_check": "off"}, "gdn_prefill_backend": "x"}).mtp_check == "off"


@pytest.mark.parametrize("way", ["auto", "exact", "a8", "fp8", "off"])
def test_each_way_of_the_linears_can_be_asked_for(way: str) -> None:
    assert PluginOptions.of({"qwen36": {"prefill": way}}).prefill == way


def test_scratch_and_profile_are_taken_as_given() -> None:
    section = {"prefill_scratch_mib": 1, "prefill_profile": "/a/profile.json"}
    options = PluginOptions.of({"qwen36": section})
    assert (options.prefill_scratch_mib, options.prefill_profile) == (1, "/a/profile.json")
    assert PluginOptions.of({"qwen36": {"prefill_profile": None}}).prefill_profile is None


@pytest.mark.parametrize(
    ("section", "names"),
    [
        ({"mtp_chek": "off"}, ["qwen36.mtp_chek", "mtp_check"]),
        ({"mtp_check": "no"}, ["qwen36.mtp_check", '"on" or "off"', "'no'"]),
        ({"mtp_check": False}, ['"on" or "off"', "False"]),
        ({"mtp_check": []}, ['"on" or "off"']),
        ("off", ["must be an object", '{"qwen36": {"mtp_check": "off"}}']),
        ({"prefill": "fast"}, ["qwen36.prefill", '"auto" or "exact" or "a8" or "fp8" or "off"', "'fast'"]),
        ({"prefill": True}, ["qwen36.prefill", "True"]),
        ({"prefill": None}, ["qwen36.prefill", "None"]),
        *(
            (
                {"prefill_scratch_mib": value},
                ["qwen36.prefill_scratch_mib", "a whole number from 1 to 1048576", repr(value)],
            )
            for value in (0, -1, "x", "128", True, 1.5, None, (1 << 20) + 1, 10**30)
        ),
        *(
            ({"prefill_profile": value}, ["qwen36.prefill_profile", "the path of a file", repr(value)])
            for value in ("", 1, False, ["a.json"])
        ),
        ({"prefill_profil": "a.json"}, ["qwen36.prefill_profil", "prefill_profile"]),
    ],
)
def test_a_mistake_is_an_error_that_names_what_is_valid(section: Any, names: list[str]) -> None:
    with pytest.raises(OptionsError) as caught:
        PluginOptions.of({"qwen36": section})
    assert all(name in str(caught.value) for name in names)
