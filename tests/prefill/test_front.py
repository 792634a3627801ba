"""Before a start: options are checked, and the key of compiled graphs gets the plugin."""

from __future__ import annotations

import json
import subprocess
import sys
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from vllm_qwen36_plugin.errors import OptionsError
from vllm_qwen36_plugin.options import PluginOptions
from vllm_qwen36_plugin.prefill.front import check_before_start
from vllm_qwen36_plugin.prefill.profile import Profile, Starts, write
from vllm_qwen36_plugin.prefill.shape import Shape
from vllm_qwen36_plugin.start import SALT
from vllm_qwen36_plugin.start import graphs_key as salt


def started(additional_config: Any) -> Any:
    config = SimpleNamespace(additional_config=additional_config)
    check_before_start(config)
    return config.additional_config


def test_the_salt_says_which_plugin_and_which_way() -> None:
    assert started({})[SALT] == {"version": version("vllm-qwen36-plugin"), "prefill": "auto"}


def test_every_way_has_a_salt_of_its_own() -> None:
    salts = {
        str(started({"qwen36": {"prefill": way}})[SALT]) for way in ("auto", "exact", "a8", "fp8", "off")
    }
    assert len(salts) == 5


def test_what_the_graph_does_not_hold_is_not_in_the_salt(tmp_path: Path) -> None:
    path = tmp_path / "profile.json"
    write(path, Profile("measured: x", {Shape("marlin", 5120, 14336, 4, 128, "bfloat16"): Starts(512)}))
    section = {"prefill_profile": str(path), "prefill_scratch_mib": 64}
    assert started({"qwen36": section})[SALT] == started({})[SALT]


def test_the_rest_of_the_config_is_left_as_it_was() -> None:
    config = {"qwen36": {"prefill": "fp8"}, "gdn_prefill_backend": "triton"}
    entered = started(dict(config))
    assert {key: value for key, value in entered.items() if key != SALT} == config
    assert PluginOptions.of(entered) == PluginOptions.of(config)
    assert started(dict(entered)) == entered


def test_a_config_that_is_no_dict_hashes_itself_and_is_left_alone() -> None:
    config = object()
    assert started(config) is config


def test_a_checkout_that_is_not_installed_serves_too(monkeypatch: pytest.MonkeyPatch) -> None:
    def absent(name: str) -> str:
        raise PackageNotFoundError(name)

    monkeypatch.setattr(salt, "version", absent)
    assert started({})[SALT] == {"version": "not installed", "prefill": "auto"}


@pytest.mark.engine  # no engine, but vLLM is imported: some seconds
def test_vllms_key_of_compiled_graphs_changes_with_the_plugin_and_the_way() -> None:
    pytest.importorskip("vllm")
    from vllm.config import VllmConfig

    def key(additional_config: dict[str, Any]) -> str:
        return str(VllmConfig(additional_config=additional_config).compute_hash())

    section: dict[str, Any] = {"qwen36": {"prefill": "exact"}}
    stock, ours = key(section), key(started(json.loads(json.dumps(section))))
    assert ours != stock
    assert ours == key(started(json.loads(json.dumps(section))))
    assert key(started({"qwen36": {"prefill": "off"}})) != ours


@pytest.mark.parametrize("content", [None, "{", "{}", '{"format": 99}'])
def test_a_profile_that_is_none_is_refused_by_name_with_what_makes_one(
    tmp_path: Path, content: str | None
) -> None:
    path = tmp_path / "mine.json"
    if content is not None:
        path.write_text(content)
    config = {"qwen36": {"prefill_profile": str(path)}}
    with pytest.raises(OptionsError) as caught:
        started(config)
    text = str(caught.value)
    assert text.startswith(f'"prefill_profile" in --additional-config: {path}')
    assert "qwen36 tune prefill" in text
    assert SALT not in config


def test_a_wrong_option_is_refused() -> None:
    with pytest.raises(OptionsError, match=r'"qwen36\.prefill" in --additional-config must be'):
        started({"qwen36": {"prefill": "fast"}})


def test_it_costs_the_front_process_no_torch() -> None:
    code = (
        f"import sys, {check_before_start.__module__}; print('torch' in sys.modules, 'triton' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["False", "False"]
