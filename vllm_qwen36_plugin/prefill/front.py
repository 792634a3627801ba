"""Before start, in the front process: options looked at, and vLLM's cache of compiled graphs told of the plugin."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from vllm_qwen36_plugin.errors import OptionsError
from vllm_qwen36_plugin.start import enter_salt, plugin_options, show_refusal_alone

from .profile import ProfileError, read


def before_start(vllm_config: Any) -> None:
    """Enter the plugin, its version and the way of the linears into what compiled graphs are kept under.

    A profile needs no entry: the graph holds no number of rows.

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
                f'"prefill_profile" in --additional-config: {error}. Make one with qwen36 tune'
            ) from error
    enter_salt(vllm_config, "prefill", options.prefill)
