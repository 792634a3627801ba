"""The check before start, in the front process: every ``g_idx`` of the files that vLLM will read."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from vllm_qwen36_plugin.errors import ActOrderError
from vllm_qwen36_plugin.log import logger
from vllm_qwen36_plugin.options import PluginOptions
from vllm_qwen36_plugin.report import note
from vllm_qwen36_plugin.start import (
    INDEXED_FORMATS,
    enter_salt,
    note_passed,
    open_local,
    passed_in_parent,
    plugin_options,
    plugin_version,
    refusal_text,
    show_refusal_alone,
)
from vllm_qwen36_plugin.upstream.vllm_config import load_format, quantization_config

from . import claim
from .claim import NAME

if TYPE_CHECKING:
    from gptq_hybrid.doctor import ActOrder, Finding

_PASSED = "QWEN36_ACT_ORDER_PASSED"
# Formats with a g_idx that vLLM reads, or ignores in silence.
_METHODS = frozenset(
    {"gptq", "gptq_marlin", "auto_gptq", "auto-round", "auto_round", "intel/auto-round", "inc"}
)
# Rules for what every vLLM serves wrong. What a version refuses, it says itself.
_WRONG = frozenset({"g-idx-flag", "g-idx-fused", "g-idx-range"})


def check_before_start(vllm_config: Any) -> None:
    """Refuse a checkpoint whose ``g_idx`` would be served wrong; otherwise log what act order costs.

    Reads nothing of a checkpoint without quantization or in a format without ``g_idx``, nor if the files are not on
    this machine yet. The linear method then still refuses what it cannot sort. An error of its own ends in a
    warning.

    Raises:
        ActOrderError: with a message for the user, which vLLM's commands print without a traceback.
        OptionsError: ``additional_config["qwen36"]`` holds something unknown.
    """
    options = plugin_options(vllm_config)
    if vllm_config.model_config.quantization == NAME:
        enter_salt(vllm_config, "act order, norms", claim.FOLD_NORMS)
    try:
        problems = _problems(vllm_config, options)
    except Exception as error:  # noqa: BLE001 - a check that breaks must not keep a good model from serving
        logger.warning("the act-order check before start is off: %s", error or repr(error))
        return
    if problems:
        show_refusal_alone()
        model = vllm_config.model_config.model
        raise ActOrderError(
            refusal_text(
                f"{model} would be served wrong, because of the order that g_idx gives its rows:",
                problems,
                [
                    "To start without this check, add --additional-config "
                    '\'{"qwen36": {"act_order_check": "off"}}\'.'
                ],
            )
        )


def _problems(vllm_config: Any, options: PluginOptions) -> list[tuple[str, str]]:
    """Return what would be served wrong, and what to do about it."""
    model = vllm_config.model_config
    method = str((quantization_config(model) or {}).get("quant_method", "")).lower()
    if method not in _METHODS or load_format(vllm_config.load_config) not in INDEXED_FORMATS:
        return []
    if options.act_order_check == "off":
        logger.info("vllm-qwen36-plugin: act-order check is off (act_order_check=off)")
        note("act order", "unchecked", "act_order_check is off")
        return []
    name = str(model.model)
    if passed_in_parent(_PASSED, name):
        return []
    from gptq_hybrid.common.errors import UnsupportedArchitectureError
    from gptq_hybrid.doctor import check_act_order, installed_vllm

    checkpoint = open_local(name, model.revision, vllm_config.load_config.download_dir)
    if checkpoint is None:
        return []
    ours = model.quantization == NAME
    try:
        report = check_act_order(checkpoint, vllm=installed_vllm(), plugin=ours)
    except UnsupportedArchitectureError:
        return []
    for finding in report.findings:
        if finding.rule == "rule-failed":
            logger.warning("%s: %s", name, finding.message)
    problems = [
        (_with_place(finding), finding.remedy)
        for finding in report.findings
        if finding.rule in _WRONG and finding.severity == "error"
    ]
    if not problems:
        _log_cost(report, lora=getattr(vllm_config, "lora_config", None) is not None)
        note_passed(_PASSED, name)
        if report.permuted:
            note("act order", "served", f"{len(report.permuted)} modules have a permuted g_idx")
        else:
            note("act order", "none", "every g_idx is in natural order")
    return problems


def _with_place(finding: Finding) -> str:
    return f"{finding.message} ({finding.tensor} in {finding.file})" if finding.tensor else finding.message


def _log_cost(report: ActOrder, *, lora: bool) -> None:
    for finding in report.findings:
        if finding.rule == "act-order-version":
            logger.info(
                "vllm-qwen36-plugin %s active: %s%s. A checkpoint that costs nothing: %s",
                plugin_version(),
                finding.message,
                "; with LoRA down_proj is permuted too" if lora else "",
                "qwen36 quantize ORIGINAL TARGET --recipe static-mse",
            )
