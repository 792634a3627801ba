"""The check before start: every ``g_idx`` of the files vLLM is going to read, in the front process."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from vllm_qwen36_plugin.errors import ActOrderError
from vllm_qwen36_plugin.log import logger
from vllm_qwen36_plugin.options import PluginOptions
from vllm_qwen36_plugin.start import (
    INDEXED_FORMATS,
    bullets,
    enter_salt,
    note_passed,
    open_local,
    options_of,
    passed_in_parent,
    show_refusal_alone,
)
from vllm_qwen36_plugin.upstream.draft import format_name

from . import claim
from .claim import NAME

if TYPE_CHECKING:
    from gptq_hybrid.checkpoint import TensorInfo
    from gptq_hybrid.doctor import ActOrder, Finding

_PASSED = "QWEN36_ACT_ORDER_PASSED"
# Formats with a g_idx that vLLM reads, or ignores without a word.
_METHODS = frozenset(
    {"gptq", "gptq_marlin", "auto_gptq", "auto-round", "auto_round", "intel/auto-round", "inc"}
)
# Served wrong by every vLLM. What a version refuses, it says itself.
_WRONG = frozenset({"g-idx-flag", "g-idx-fused", "g-idx-range"})
# Their input rows are split between the ranks of tensor parallelism.
_ROW_PARALLEL = frozenset({"o_proj", "out_proj", "down_proj"})


def check_before_start(vllm_config: Any) -> None:
    """Refuse a checkpoint whose ``g_idx`` would be served wrong; say what act order costs where it is served.

    Reads nothing of a checkpoint without quantization or in a format without ``g_idx``, nor where the files are
    not on this machine yet; the linear method then still refuses what it cannot sort. An error of its own ends
    in a warning.

    Raises:
        ActOrderError: with a message for the user, which vLLM's commands print without a traceback.
        OptionsError: ``additional_config["qwen36"]`` holds something unknown.
    """
    options = options_of(vllm_config)
    if vllm_config.model_config.quantization == NAME:
        enter_salt(vllm_config, "act order, norms", claim.FOLD_NORMS)
    try:
        problems = _problems(vllm_config, options)
    except Exception as error:  # noqa: BLE001 - a check that breaks must not keep a good model from serving
        logger.warning("the act-order check before start is off: %s", error or repr(error))
        return
    if problems:
        show_refusal_alone()
        raise ActOrderError(_refusal(str(vllm_config.model_config.model), problems))


def _problems(vllm_config: Any, options: PluginOptions) -> list[tuple[str, str]]:
    """What would be served wrong, and what to do about it."""
    model = vllm_config.model_config
    if _method(model) not in _METHODS or format_name(vllm_config.load_config) not in INDEXED_FORMATS:
        return []
    if options.act_order_check == "off":
        logger.info("vllm-qwen36-plugin: act-order check is off (act_order_check=off)")
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
        found = check_act_order(checkpoint, vllm=installed_vllm(), plugin=ours)
    except UnsupportedArchitectureError:
        return []
    for finding in found.findings:
        if finding.rule == "rule-failed":
            logger.warning("%s: %s", name, finding.message)
    problems = [
        (_with_place(f), f.remedy) for f in found.findings if f.rule in _WRONG and f.severity == "error"
    ]
    if ours:
        problems += _split(found.permuted, vllm_config.parallel_config.tensor_parallel_size)
    if not problems:
        _say_what_it_costs(found, lora=getattr(vllm_config, "lora_config", None) is not None)
        note_passed(_PASSED, name)
    return problems


def _with_place(finding: Finding) -> str:
    return f"{finding.message} ({finding.tensor} in {finding.file})" if finding.tensor else finding.message


def _method(model_config: Any) -> str | None:
    """``quant_method`` of the checkpoint's config, in lower case, where vLLM keeps it."""
    for owner in ("hf_config", "hf_text_config"):
        found = getattr(getattr(model_config, owner, None), "quantization_config", None)
        if isinstance(found, Mapping):
            return str(found.get("quant_method", "")).lower()
    return None


def _split(permuted: Mapping[str, TensorInfo], ranks: int) -> list[tuple[str, str]]:
    """The one problem of tensor parallelism: a rank's groups need rows that other ranks have."""
    rows = [info for module, info in permuted.items() if module.rpartition(".")[2] in _ROW_PARALLEL]
    if ranks == 1 or not rows:
        return []
    return [
        (
            f"with --tensor-parallel-size {ranks}, {len(rows)} modules are split by rows, and in act order a "
            f"group's rows lie on several GPUs: {rows[0].name} in {rows[0].file}",
            "Serve it on one GPU, without --tensor-parallel-size; or quantize again, without order at run time: "
            "qwen36 quantize ORIGINAL TARGET --recipe static-mse",
        )
    ]


def _say_what_it_costs(found: ActOrder, *, lora: bool) -> None:
    from importlib.metadata import version

    for finding in found.findings:
        if finding.rule == "act-order-version":
            logger.info(
                "vllm-qwen36-plugin %s active: %s%s. A checkpoint that costs nothing: %s",
                version("vllm-qwen36-plugin"),
                finding.message,
                "; with LoRA down_proj is permuted too" if lora else "",
                "qwen36 quantize ORIGINAL TARGET --recipe static-mse",
            )


def _refusal(model: str, problems: list[tuple[str, str]]) -> str:
    lines = [
        f"{model} would be served wrong, for the order that its g_idx give its rows:",
        "",
        *bullets(problems),
        "",
        'To start without this check, add --additional-config \'{"qwen36": {"act_order_check": "off"}}\'.',
    ]
    return "\n".join(lines)
