"""The check before start: headers and samples of the files vLLM is going to read, in the front process."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any

from vllm_qwen36_plugin.errors import MtpHeadError
from vllm_qwen36_plugin.log import logger
from vllm_qwen36_plugin.options import PluginOptions
from vllm_qwen36_plugin.start import (
    INDEXED_FORMATS,
    note_passed,
    open_local,
    options_of,
    passed_in_parent,
    show_refusal_alone,
)
from vllm_qwen36_plugin.start.refusal import refusal
from vllm_qwen36_plugin.upstream.draft import MtpDraft, mtp_draft

if TYPE_CHECKING:
    from gptq_hybrid.doctor import Finding

_PASSED = "QWEN36_MTP_PASSED"


def check_before_start(vllm_config: Any) -> None:
    """Refuse a config that asks for MTP with a checkpoint whose head cannot draft.

    Says and reads nothing when MTP is off. What it cannot see (a model not downloaded yet, a loader of
    another format) it leaves to the check in the worker; so does an error of its own, with a warning.

    Raises:
        MtpHeadError: with a message for the user, which vLLM's commands print without a traceback.
        OptionsError: ``additional_config["qwen36"]`` holds something unknown.
    """
    options = options_of(vllm_config)
    try:
        draft = mtp_draft(vllm_config)
        problems = None if draft is None else _problems(draft, options)
    except Exception as error:  # noqa: BLE001 - a check that breaks must not keep a good model from serving
        logger.warning("MTP check before start is off, the worker will check: %s", error or repr(error))
        return
    if draft is not None and problems:
        show_refusal_alone()
        raise MtpHeadError(refusal(draft.model, problems))


def _problems(draft: MtpDraft, options: PluginOptions) -> list[tuple[str, str]] | None:
    """What is wrong with the head and what to do about it; None when it was not looked at."""
    from importlib.metadata import version

    from gptq_hybrid.common.errors import CheckpointError, UnsupportedArchitectureError
    from gptq_hybrid.doctor import check_mtp, installed_vllm

    if options.mtp_check == "off":
        logger.info("vllm-qwen36-plugin: MTP check is off (mtp_check=off)")
        return None
    banner = f"vllm-qwen36-plugin {version('vllm-qwen36-plugin')} active: mtp hard check"
    if draft.load_format not in INDEXED_FORMATS:
        logger.info("%s (in the worker: load format %s)", banner, draft.load_format)
        return None
    if passed_in_parent(_PASSED, draft.model):
        return None
    begun = time.perf_counter()
    try:
        checkpoint = open_local(draft.model, draft.revision, draft.download_dir)
        if checkpoint is None:
            logger.info("%s (in the worker: %s is not on this machine yet)", banner, draft.model)
            return None
        findings = check_mtp(checkpoint, vllm=installed_vllm())
    except CheckpointError as error:
        return [(error.message, error.remedy or "")]
    except UnsupportedArchitectureError as error:
        logger.info("%s (in the worker: %s)", banner, error.message)
        return None
    for finding in findings:
        if not _refuses(finding):
            logger.warning("%s: %s", checkpoint.location, finding.message)
    problems = [(found.message, found.remedy) for found in findings if _refuses(found)]
    if not problems:
        logger.info("%s (files in order, %.0f ms)", banner, (time.perf_counter() - begun) * 1e3)
        note_passed(_PASSED, draft.model)
    return problems


def _refuses(finding: Finding) -> bool:
    """A rule that broke says nothing of the checkpoint; the worker looks at what was loaded."""
    return finding.severity == "error" and finding.rule != "rule-failed"
