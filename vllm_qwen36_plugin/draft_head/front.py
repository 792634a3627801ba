"""Before start, in the front process: what cannot be is refused there, and compiled graphs are told apart."""

from __future__ import annotations

from typing import Any

from gptq_hybrid.checkpoint import DraftVocab
from gptq_hybrid.common.errors import CheckpointError
from vllm_qwen36_plugin.errors import OptionsError
from vllm_qwen36_plugin.start import enter_salt, open_local, options_of, show_refusal_alone
from vllm_qwen36_plugin.upstream.draft import mtp_draft

from .settings import DraftSettings, device_here, settings_for
from .vocabulary import find_list, ids_to_draft


def before_start(vllm_config: Any) -> None:
    """Look at the options for drafts where MTP is on, and enter them into what compiled graphs are kept under.

    Raises:
        OptionsError: FP8 on a device without it, a number of tokens without a list of them, a list that is damaged
            or of another model, or a number of tokens with several GPUs.
    """
    draft = mtp_draft(vllm_config)
    if draft is None:
        return
    try:
        gpus = vllm_config.parallel_config.tensor_parallel_size
        settings = settings_for(options_of(vllm_config), *device_here(), gpus=gpus)
        if settings.vocabulary and gpus > 1:
            raise OptionsError(
                '"qwen36.draft_vocab" in --additional-config needs --tensor-parallel-size 1: each GPU has some of '
                "the output head's rows. Leave it away, and the MTP layer alone is quantized"
            )
        _check_list(vllm_config, settings)
    except OptionsError:
        show_refusal_alone()
        raise
    enter_salt(vllm_config, "drafts", settings.form)


def _check_list(vllm_config: Any, settings: DraftSettings) -> None:
    try:
        ids_to_draft(settings, list_for(vllm_config, settings))
    except CheckpointError as error:
        raise OptionsError(str(error)) from error


def list_for(vllm_config: Any, settings: DraftSettings) -> DraftVocab | None:
    """The list of tokens for the checkpoint that is served; None where there is none or it is not here yet.

    Raises:
        OptionsError, CheckpointError: as `vocabulary.find_list`.
    """
    if settings.vocabulary == 0:
        return None
    model = vllm_config.model_config
    checkpoint = open_local(str(model.model), model.revision, vllm_config.load_config.download_dir)
    folder = None if checkpoint is None else checkpoint.path
    return None if folder is None else find_list(settings, folder)
