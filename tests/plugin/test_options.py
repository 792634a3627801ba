"""The options section of ``--additional-config``."""

from __future__ import annotations

from typing import Any

import pytest

from vllm_qwen36_plugin.errors import OptionsError
from vllm_qwen36_plugin.options import PluginOptions


@pytest.mark.parametrize("config", [None, {}, {"other": 1}, {"qwen36": {}}, object()])
def test_defaults_apply_without_a_section(config: Any) -> None:
    assert PluginOptions.of(config) == PluginOptions(mtp_check="on")


def test_the_check_can_be_switched_off() -> None:
    assert PluginOptions.of({"qwen36": {"mtp_check": "off"}, "gdn_prefill_backend": "x"}).mtp_check == "off"


@pytest.mark.parametrize(
    ("section", "names"),
    [
        ({"mtp_chek": "off"}, ["qwen36.mtp_chek", "mtp_check"]),
        ({"mtp_check": "no"}, ["qwen36.mtp_check", '"on" or "off"', "'no'"]),
        ({"mtp_check": False}, ['"on" or "off"', "False"]),
        ({"mtp_check": []}, ['"on" or "off"']),
        ("off", ["must be an object", '{"qwen36": {"mtp_check": "off"}}']),
    ],
)
def test_a_mistake_is_an_error_that_names_what_is_valid(section: Any, names: list[str]) -> None:
    with pytest.raises(OptionsError) as caught:
        PluginOptions.of({"qwen36": section})
    assert all(name in str(caught.value) for name in names)
