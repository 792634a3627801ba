"""The check before start, in the front process: headers and samples of the files that vLLM will read."""

from __future__ import annotations

import time
from collections.abc import Collection, Iterable
from typing import TYPE_CHECKING, Any

from vllm_qwen36_plugin.errors import MtpHeadError
from vllm_qwen36_plugin.log import logger
from vllm_qwen36_plugin.options import PluginOptions
from vllm_qwen36_plugin.report import note
from vllm_qwen36_plugin.start import (
    INDEXED_FORMATS,
    note_passed,
    open_local,
    passed_in_parent,
    plugin_options,
    plugin_version,
    refusal_text,
    show_refusal_alone,
)
from vllm_qwen36_plugin.upstream.vllm_config import (
    MtpDraft,
    mtp_draft,
    stages_that_cannot_draft,
    track_draft_weights,
)

if TYPE_CHECKING:
    from gptq_hybrid.doctor import Finding

_PASSED, _WHOLE = "QWEN36_MTP_PASSED", "QWEN36_MTP_WHOLE"
_GPTQ = (".qweight", ".qzeros", ".scales", ".g_idx")


def check_before_start(vllm_config: Any) -> None:
    """Refuse a config that asks for MTP with a checkpoint whose head cannot draft.

    Logs and reads nothing if MTP is off. What it cannot see (a model not downloaded yet, a loader of another
    format) it leaves to the check in the worker. It has vLLM's loader look for parameters that nothing was loaded
    into (0.32 and later), unless the head does without some that nothing reads, such as zero points. An error of
    its own leaves all to the worker, with a warning.

    Raises:
        MtpHeadError: with a message for the user, which vLLM's commands print without a traceback; also if the head
            is sound and this vLLM dies with MTP over the stages asked for.
        OptionsError: ``additional_config["qwen36"]`` holds something unknown.
    """
    options = plugin_options(vllm_config)
    try:
        draft = mtp_draft(vllm_config)
        problems, whole = (None, False) if draft is None else _problems(draft, options)
        if whole:
            track_draft_weights(vllm_config)
    except Exception as error:  # noqa: BLE001 - a check that breaks must not keep a good model from serving
        logger.warning("MTP check before start is off, the worker will check: %s", error or repr(error))
        return
    if draft is not None and problems:
        show_refusal_alone()
        raise MtpHeadError(head_refusal(draft.model, problems))
    stages = 0 if draft is None or options.mtp_check == "off" else stages_that_cannot_draft(vllm_config)
    if stages:
        show_refusal_alone()
        raise MtpHeadError(_stages_refusal(stages))


def head_refusal(model: str, problems: Iterable[tuple[str, str]]) -> str:
    """Compose a message of at most 17 lines about pairs of what is wrong with a head and what to do about it."""
    return refusal_text(
        f"MTP speculative decoding was asked for, but the MTP head of {model} is not usable:",
        problems,
        (
            "Stock vLLM mostly starts anyway and accepts no draft, which costs speed and says nothing.",
            "To serve without MTP, leave out --speculative-config.",
            'To start in spite of this, add --additional-config \'{"qwen36": {"mtp_check": "off"}}\'.',
        ),
    )


def _stages_refusal(stages: int) -> str:
    return refusal_text(
        f"MTP speculative decoding was asked for over {stages} stages (--pipeline-parallel-size), and this vLLM "
        "cannot do both:",
        [
            (
                "its V1 model runner has a drafter on the last stage alone, and ends when the others are asked for "
                "theirs, after all weights were loaded",
                "Use --tensor-parallel-size in place of --pipeline-parallel-size, or leave out "
                "--speculative-config. On NVIDIA GPUs vLLM 0.29 and later have a V2 model runner, which asks the "
                "last stage alone: VLLM_USE_V2_MODEL_RUNNER=1",
            )
        ],
        ('To start in spite of this, add --additional-config \'{"qwen36": {"mtp_check": "off"}}\'.',),
    )


def _problems(draft: MtpDraft, options: PluginOptions) -> tuple[list[tuple[str, str]] | None, bool]:
    """Return what is wrong with the head and what to do about it, and whether all that vLLM makes for it is there.

    None and False if it was not examined.
    """
    from gptq_hybrid.common.errors import CheckpointError, UnsupportedArchitectureError
    from gptq_hybrid.doctor import check_mtp, installed_vllm

    if options.mtp_check == "off":
        logger.info("vllm-qwen36-plugin: MTP check is off (mtp_check=off)")
        note("MTP head", "unchecked", "mtp_check is off")
        return None, False
    banner = f"vllm-qwen36-plugin {plugin_version()} active: mtp hard check"
    if draft.load_format not in INDEXED_FORMATS:
        logger.info("%s (in the worker: load format %s)", banner, draft.load_format)
        return None, False
    if passed_in_parent(_PASSED, draft.model):
        return None, passed_in_parent(_WHOLE, draft.model)
    begun = time.perf_counter()
    try:
        checkpoint = open_local(draft.model, draft.revision, draft.download_dir)
        if checkpoint is None:
            logger.info("%s (in the worker: %s is not on this machine yet)", banner, draft.model)
            return None, False
        findings = check_mtp(checkpoint, vllm=installed_vllm())
    except CheckpointError as error:
        return [(error.message, error.remedy or "")], False
    except UnsupportedArchitectureError as error:
        logger.info("%s (in the worker: %s)", banner, error.message)
        return None, False
    for finding in findings:
        if not _refuses(finding):
            logger.warning("%s: %s", checkpoint.location, finding.message)
    problems = [(finding.message, finding.remedy) for finding in findings if _refuses(finding)]
    if not problems:
        logger.info("%s (files in order, %.0f ms)", banner, (time.perf_counter() - begun) * 1e3)
        note("MTP head", "checked", "its files are in order")
        note_passed(_PASSED, draft.model)
    whole = _is_whole({name for name in checkpoint.loaded if "mtp." in name})
    if whole:
        note_passed(_WHOLE, draft.model)
    return problems, whole


def _is_whole(names: Collection[str]) -> bool:
    """Whether a head has every tensor that vLLM makes a parameter for, also those that a kernel never reads.

    Symmetric GPTQ serves without zero points. Of other packed formats that is not known.
    """
    return all(
        name.endswith((".weight", ".bias", *_GPTQ))
        and (not name.endswith(".qweight") or f"{name.removesuffix('qweight')}qzeros" in names)
        for name in names
    )


def _refuses(finding: Finding) -> bool:
    """Whether a finding is a reason to refuse. A rule that broke or did not read says nothing of the head."""
    from gptq_hybrid.doctor import NOT_READ

    return finding.severity == "error" and finding.rule not in {"rule-failed", NOT_READ}
