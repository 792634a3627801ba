"""The container file names the newest vLLM that was read, and caches where they stay."""

from __future__ import annotations

import re
from pathlib import Path

from gptq_hybrid.doctor.vllm_releases import NEWEST

TEXT = (Path(__file__).parents[2] / "bench" / "Containerfile").read_text(encoding="utf-8")


def test_the_pinned_release_is_the_newest_that_was_read() -> None:
    assert re.findall(r"^FROM \S+/vllm-openai:v(\S+)$", TEXT, re.MULTILINE) == [NEWEST]


def test_caches_that_are_named_stay_on_the_volume() -> None:
    folders = dict(re.findall(r"^(?:ENV)? +(\w+)=(\S+?)(?: \\)?$", TEXT, re.MULTILINE))
    assert set(folders) == {"TRITON_CACHE_DIR", "VLLM_CACHE_ROOT", "HF_HOME"}
    assert all(folder.startswith("/cache/") for folder in folders.values())
    assert "VOLUME /cache" in TEXT


def test_installing_the_plugin_may_change_no_pin() -> None:
    assert "--constraint /tmp/pins.txt" in TEXT
