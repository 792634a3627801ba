"""What `qwen36 env` says of this environment, and what it never says."""

from __future__ import annotations

import json
import subprocess
from types import SimpleNamespace
from typing import Any

import pytest

from vllm_qwen36_plugin.env import look as env
from vllm_qwen36_plugin.env import probe


@pytest.mark.parametrize(("allowed", "loaded"), [(None, True), ("qwen36,x", True), ("", False), ("x", False)])
def test_env_says_why_the_plugin_is_not_loaded(
    monkeypatch: pytest.MonkeyPatch, allowed: str | None, loaded: bool
) -> None:
    monkeypatch.delenv("VLLM_PLUGINS", raising=False)
    if allowed is not None:
        monkeypatch.setenv("VLLM_PLUGINS", allowed)
    assert (probe.not_loaded() == "") is loaded
    if not loaded:
        assert "VLLM_PLUGINS" in probe.not_loaded()


def test_env_prints_no_secret(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("HF_TOKEN", "VLLM_API_KEY", "OPENAI_API_KEY"):
        monkeypatch.setenv(name, "hunter2")
    monkeypatch.setenv("TRITON_CACHE_DIR", "/kept")
    monkeypatch.setattr(env, "_probed", lambda: ("", "cpu", (("prefill", False, "for CUDA"),)))
    found = env.look_around()
    text = "\n".join(found.lines()) + json.dumps(found.as_json())
    assert "hunter2" not in text
    assert "TRITON_CACHE_DIR=/kept" in text
    assert "off prefill: for CUDA" in text


def test_env_survives_a_vllm_that_cannot_be_loaded(monkeypatch: pytest.MonkeyPatch) -> None:
    def died(*args: Any, **options: Any) -> SimpleNamespace:
        return SimpleNamespace(stdout="", stderr="Traceback\nOSError: no libtorch", returncode=1)

    monkeypatch.setattr(subprocess, "run", died)
    why, platform, listed = env._probed()
    assert (platform, listed) == (None, ())
    assert "OSError: no libtorch" in why
