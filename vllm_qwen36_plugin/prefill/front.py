"""Before start, in the front process: options looked at, and vLLM's cache of compiled graphs told of the plugin."""

from __future__ import annotations

from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from vllm_qwen36_plugin.before_start import options_of, show_refusal_alone
from vllm_qwen36_plugin.errors import OptionsError

from .profile import ProfileError, read

# In additional_config, which is part of the key of compiled graphs; which kernel runs is not.
SALT = "qwen36_graphs"


def before_start(vllm_config: Any) -> None:
    """Enter the plugin, its version and the way of the linears into what compiled graphs are kept under.

    A profile needs no entry: the graph holds no number of rows.

    Raises:
        OptionsError: ``prefill_profile`` names a file that is no profile.
    """
    options = options_of(vllm_config)
    if options.prefill_profile is not None:
        try:
            read(Path(options.prefill_profile))
        except ProfileError as error:
            show_refusal_alone()
            raise OptionsError(
                f'"prefill_profile" in --additional-config: {error}. Make one with qwen36 tune'
            ) from error
    config = vllm_config.additional_config
    if isinstance(config, dict):
        config[SALT] = f"{_version()} prefill={options.prefill}"


def _version() -> str:
    try:
        return version("vllm-qwen36-plugin")
    except PackageNotFoundError:  # run from a checkout that is on the path alone
        return "not installed"
