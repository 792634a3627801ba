"""The check before start, in the front process: refuse what cannot work, and key compiled graphs by precision."""

from __future__ import annotations

from typing import Any

from gptq_hybrid.common.errors import CheckpointError
from vllm_qwen36_plugin.errors import OptionsError
from vllm_qwen36_plugin.log import logger
from vllm_qwen36_plugin.start import enter_salt, plugin_options, show_refusal_alone
from vllm_qwen36_plugin.upstream.vllm_config import draft_lengths, keep_drafts_in_sleep, mtp_draft

from .settings import current_device, draft_settings
from .vocabulary import draft_list, ids_to_draft


def check_before_start(vllm_config: Any) -> None:
    """Check the options for drafts if MTP is on, and enter precision and length into vLLM's key of compiled graphs.

    Without the length a graph compiled for another one is taken from the cache (vLLM #53366), which
    ``qwen36 tune drafts`` would meet at every step of its sweep.

    Raises:
        OptionsError: FP8 on a device without it, a number of tokens without a list of them, or a list that is
            damaged or of another model.
    """
    if mtp_draft(vllm_config) is None:
        return
    try:
        gpus = vllm_config.parallel_config.tensor_parallel_size
        settings = draft_settings(plugin_options(vllm_config), *current_device())
        try:
            ids_to_draft(settings, draft_list(vllm_config, settings), gpus)
        except CheckpointError as error:
            raise OptionsError(str(error)) from error
    except OptionsError:
        show_refusal_alone()
        raise
    if settings.precision != "bf16" and not keep_drafts_in_sleep(vllm_config):
        logger.warning(
            "vllm-qwen36-plugin: this vLLM loses quantized drafts in sleep level 2, and no reload brings them "
            'back; use level 1, vLLM 0.31 or later, or set "qwen36.draft" to "bf16"'
        )
    enter_salt(vllm_config, "drafts", settings.precision)
    enter_salt(vllm_config, "tokens a draft", draft_lengths(vllm_config))
