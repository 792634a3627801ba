"""vLLM's key of compiled graphs, which knows nothing of kernels and linear methods that a plugin chooses."""

from __future__ import annotations

from importlib.metadata import PackageNotFoundError, version
from typing import Any

# In additional_config, which is part of that key.
SALT = "qwen36_graphs"


def enter_salt(vllm_config: Any, feature: str, choice: str) -> None:
    """Enter a feature's choice, and the plugin's version, into the key."""
    config = vllm_config.additional_config
    if isinstance(config, dict):
        salt = config.get(SALT)
        config[SALT] = {
            **(salt if isinstance(salt, dict) else {}),
            "version": plugin_version(),
            feature: choice,
        }


def plugin_version() -> str:
    """The installed version of this plugin."""
    try:
        return version("vllm-qwen36-plugin")
    except PackageNotFoundError:  # run from a checkout that is on the path alone
        return "not installed"
