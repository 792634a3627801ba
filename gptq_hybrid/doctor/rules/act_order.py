"""Rules: which vLLM serves an act-order checkpoint, and which would talk garbage (``g_idx``, ``desc_act``)?"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from gptq_hybrid.checkpoint import formats
from gptq_hybrid.checkpoint.formats import compressed_tensors
from gptq_hybrid.checkpoint.quantization import asks_for_act_order, dynamic_rule, quant_method
from gptq_hybrid.doctor import vllm_releases
from gptq_hybrid.doctor.findings import Fault, Inspection, Severity, rule, some

from .g_idx import g_idx, loaded_as, misgrouped, permuted, unequal
from .linears import is_gptq, lookup_names

_REQUANTIZE = (
    "Quantize again, with a recipe that needs no order at run time: qwen36 quantize ORIGINAL TARGET "
    "--recipe static-mse (or static)"
)
# The method that the plugin takes over; gptqmodel never writes `gptq_marlin` into a config.json.
_SERVED_BY_PLUGIN = "gptq"
# Its order is folded into the columns of gate_up_proj once, on load.
_FOLDED = "down_proj"


def _in_act_order(inspection: Inspection, module: str) -> bool:
    """Whether the config has this module in act order, under every name by which vLLM looks it up."""
    config = inspection.checkpoint.quantization_config or {}

    def desc_act(name: str) -> bool:
        override: Any = dynamic_rule(config, name)
        base = config.get("desc_act")
        return bool(override.get("desc_act", base) if override else base)

    return all(desc_act(name) for name in lookup_names(inspection, module))


@rule(
    "g-idx-flag",
    scope="act-order",
    explanation="With `desc_act: false` every vLLM ignores g_idx, and gives rows the scales of other groups.",
    remedy="If every module is in act order, qwen36 repair {path} sets desc_act to true. Otherwise fetch the "
    "checkpoint again; do not change the flag by hand.",
)
def flag(inspection: Inspection) -> Iterator[Fault]:
    config = inspection.checkpoint.quantization_config
    # AutoRound's config has no desc_act: vLLM ignores any g_idx.
    without_flag = formats.declared_format(config) is formats.AUTO_ROUND
    if config is None or not (is_gptq(inspection) or without_flag):
        return
    if served_by_plugin(inspection):
        return  # with one rule of `dynamic` in act order, the plugin honours every g_idx
    names = [name for name in permuted(inspection) if without_flag or not _in_act_order(inspection, name)]
    if names:
        yield Fault(
            f"{len(names)} modules have a permuted g_idx although the config has no desc_act: true; every vLLM "
            f"ignores it and computes garbage: {some(names)}",
            tensor=f"{names[0]}.g_idx",
            file=g_idx(inspection)[names[0]][0].file,
            remedy=f"{_REQUANTIZE}." if without_flag else None,
        )


@rule(
    "g-idx-fused",
    scope="act-order",
    explanation="vLLM keeps one g_idx for a fused layer: the last one loaded wins, and nothing compares them.",
    remedy=f"{_REQUANTIZE}.",
)
def fused(inspection: Inspection) -> Iterator[Fault]:
    if not is_gptq(inspection):
        return
    for layer, first, others in unequal(inspection):
        yield Fault(
            f"{first} and {', '.join(others)} differ in g_idx, but vLLM loads them as one {layer}",
            tensor=f"{others[0]}.g_idx",
            file=g_idx(inspection)[others[0]][0].file,
        )


@rule(
    "g-idx-range",
    scope="act-order",
    explanation="Each group of group_size rows has its scales: a group past the last has none, and kernels that "
    "sort rows split a group of another size wrongly.",
    remedy=f"Fetch the file again. {_REQUANTIZE}.",
)
def in_range(inspection: Inspection) -> Iterator[Fault]:
    if not is_gptq(inspection):
        return
    for name in permuted(inspection):
        wrong = misgrouped(inspection, name)
        if wrong:
            info = g_idx(inspection)[name][0]
            yield Fault(f"{info.name} {wrong}", tensor=info.name, file=info.file)


@rule(
    "act-order-version",
    scope="act-order",
    explanation="vLLM 0.30 dropped act order (#54809) and refuses such a checkpoint before it starts; "
    "vllm-qwen36-plugin serves it.",
    remedy=f"{_REQUANTIZE}.",
)
def version(inspection: Inspection) -> Iterator[Fault]:
    if not declared(inspection):
        return
    if not permuted(inspection) and g_idx(inspection):
        return  # act-order-flag-only says what to do
    limit = vllm_releases.NO_ACT_ORDER
    if not _refused(inspection):
        yield Fault(
            "desc_act: true costs a permutation of the input of every layer, and vLLM "
            f"{limit} and later serve it only with vllm-qwen36-plugin",
            file="config.json",
            severity=Severity.WARNING,
        )
    elif served_by_plugin(inspection) and permuted(inspection):
        yield Fault(
            f"desc_act: true; vllm-qwen36-plugin serves it, at the cost of {_cost(inspection)}",
            file="config.json",
            severity=Severity.WARNING,
        )
    else:
        yield Fault(
            f"desc_act: true; stock vLLM {limit} and later, {inspection.vllm} among them, refuse it",
            file="config.json",
            remedy=(
                "vLLM with vllm-qwen36-plugin installed serves it, at the cost of "
                f"permuting the input of its layers: qwen36 check {{path}} --vllm {inspection.vllm} --plugin. "
                f"To need neither: {_REQUANTIZE[0].lower()}{_REQUANTIZE[1:]}."
                if permuted(inspection)
                and quant_method(inspection.checkpoint.quantization_config) == _SERVED_BY_PLUGIN
                else None
            ),
        )


def _cost(inspection: Inspection) -> str:
    """Say what permuting costs in each forward pass."""
    if inspection.checkpoint.files.far:
        return "permuting the input of each layer at run time"
    layers = {loaded_as(inspection, name) for name in permuted(inspection)}
    folded = {name for name in layers if name.endswith(f".{_FOLDED}")}
    free = f" ({len(folded)} {_FOLDED} cost nothing)" if folded else ""
    return f"permuting the input of {len(layers) - len(folded)} layers at run time{free}"


def _refused(inspection: Inspection) -> bool:
    """Whether stock vLLM of the release in question refuses act order."""
    return inspection.vllm is not None and inspection.vllm.at_least(vllm_releases.NO_ACT_ORDER)


def served_by_plugin(inspection: Inspection) -> bool:
    """Whether vllm-qwen36-plugin is installed and serves this checkpoint on a vLLM that refuses it."""
    config = inspection.checkpoint.quantization_config
    return (
        inspection.plugin
        and _refused(inspection)
        and declared(inspection)
        and quant_method(config) == _SERVED_BY_PLUGIN
    )


@rule(
    "act-order-flag-only",
    scope="act-order",
    explanation="Static groups leave g_idx in natural order. Nothing needs the flag, and vLLM 0.30 refuses it.",
    remedy="Set the flag to false once every g_idx is proven in natural order: qwen36 repair {path}",
)
def flag_only(inspection: Inspection) -> Iterator[Fault]:
    if not declared(inspection) or not g_idx(inspection) or permuted(inspection):
        return
    refused = _refused(inspection) and not served_by_plugin(inspection)
    refusing = f"{inspection.vllm} refuses" if refused else "0.30 and later refuse"
    yield Fault(
        f"desc_act: true although every g_idx is in natural order; stock vLLM {refusing} the flag",
        file="config.json",
        severity=Severity.ERROR if refused else Severity.WARNING,
    )


@rule(
    "act-order-packed",
    scope="act-order",
    explanation="vLLM 0.30 dropped compressed-tensors' group act order too; weight and static order are fine.",
    remedy="Quantize again with actorder weight or static.",
)
def packed(inspection: Inspection) -> Iterator[Fault]:
    config = inspection.checkpoint.quantization_config
    if config is None or quant_method(config) != "compressed-tensors":
        return
    order = compressed_tensors.act_order(config)
    if order in {"group", "dynamic"}:
        yield Fault(
            f"actorder {order}; vLLM {vllm_releases.NO_ACT_ORDER} and later refuse it",
            file="config.json",
            severity=None if _refused(inspection) else Severity.WARNING,
        )
        return
    stray = [name for name in inspection.checkpoint.loaded if name.endswith(".weight_g_idx")]
    if stray:
        yield Fault(
            f"{len(stray)} weight_g_idx tensors although actorder is {order}: vLLM {vllm_releases.STRICT_NAMES} "
            "and later fail on them",
            tensor=stray[0],
        )


def declared(inspection: Inspection) -> bool:
    """Whether the config declares act order in a way that vLLM 0.30 refuses."""
    config = inspection.checkpoint.quantization_config
    if config is None or not is_gptq(inspection):
        return False
    return asks_for_act_order(config)


ACT_ORDER_RULES = (flag, fused, in_range, version, flag_only, packed)
