"""Prefill's part in the front process, before a start: check the options, tell vLLM's graph cache of the plugin."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from vllm_qwen36_plugin.errors import OptionsError
from vllm_qwen36_plugin.start import enter_salt, plugin_options, show_refusal_alone

from .profile import ProfileError, read


def check_before_start(vllm_config: Any) -> None:
    """Enter the plugin, its version and the prefill mode into the key of vLLM's compiled graphs.

    A profile needs no entry: a graph holds no number of tokens.

    Raises:
        OptionsError: ``prefill_profile`` names a file that is no profile.
    """
    options = plugin_options(vllm_config)
    if options.prefill_profile is not None:
        try:
            read(Path(options.prefill_profile))
        except ProfileError as error:
            show_refusal_alone()
            raise OptionsError(
                f'"prefill_profile" in --additional-config: {error}. Make one with: qwen36 tune prefill'
            ) from error
    enter_salt(vllm_config, "prefill", options.prefill)
