"""``g_idx`` and ``desc_act``: which vLLM loads an act-order checkpoint, and which would talk garbage."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from gptq_hybrid.checkpoint import formats
from gptq_hybrid.checkpoint.formats import compressed_tensors
from gptq_hybrid.checkpoint.quantization import asks_for_act_order, dynamic_rule, method_of
from gptq_hybrid.doctor import vllm_releases as vllm_versions
from gptq_hybrid.doctor.findings import Fault, Inspection, Severity, rule, some

from .g_idx import g_idx, layer_of, misgrouped, permuted, unequal
from .linears import asked_as, is_gptq

_REQUANTIZE = (
    "Quantize again, with a recipe that needs no order at run time: qwen36 quantize ORIGINAL TARGET "
    "--recipe static-mse (or static)"
)
# What the plugin takes over; `gptq_marlin` in a config.json is no spelling that gptqmodel writes.
_SERVED_BY_PLUGIN = "gptq"
# Its order is folded into the columns of gate_up_proj, once, on load.
_FOLDED = "down_proj"


def _asks(see: Inspection, module: str) -> bool:
    """Whether the config asks for act order for this module, under the names by which vLLM looks it up."""
    config = see.checkpoint.quantization_config or {}

    def says(name: str) -> bool:
        override: Any = dynamic_rule(config, name)
        base = config.get("desc_act")
        return bool(override.get("desc_act", base) if override else base)

    return all(says(name) for name in asked_as(see, module))


@rule(
    "g-idx-flag",
    scope="act-order",
    explanation="With `desc_act: false` every vLLM ignores g_idx, and takes each row for one of another group.",
    remedy="Where every module is in act order, qwen36 repair {path} sets desc_act to true. Otherwise fetch the "
    "checkpoint again; do not change the flag by hand.",
)
def flag(see: Inspection) -> Iterator[Fault]:
    config = see.checkpoint.quantization_config
    # AutoRound's config has no desc_act: vLLM reads none, and ignores any g_idx.
    without_flag = formats.format_of(config) is formats.AUTO_ROUND
    if config is None or not (is_gptq(see) or without_flag):
        return
    # By one rule of `dynamic` that asks for act order, the plugin takes every g_idx for what it says.
    honoured = served_by_plugin(see)
    names = [] if honoured else [n for n in permuted(see) if without_flag or not _asks(see, n)]
    if names:
        yield Fault(
            f"{len(names)} modules have a permuted g_idx although the config has no desc_act: true; every vLLM "
            f"ignores it and computes garbage: {some(names)}",
            tensor=f"{names[0]}.g_idx",
            file=g_idx(see)[names[0]][0].file,
            remedy=f"{_REQUANTIZE}." if without_flag else None,
        )


@rule(
    "g-idx-fused",
    scope="act-order",
    explanation="vLLM keeps one g_idx for a fused layer: the last one loaded wins, and nothing compares them.",
    remedy=f"{_REQUANTIZE}.",
)
def fused(see: Inspection) -> Iterator[Fault]:
    if not is_gptq(see):
        return
    for layer, first, others in unequal(see):
        yield Fault(
            f"{first} and {', '.join(others)} differ in g_idx, but vLLM loads them as one {layer}",
            tensor=f"{others[0]}.g_idx",
            file=g_idx(see)[others[0]][0].file,
        )


@rule(
    "g-idx-range",
    scope="act-order",
    explanation="Scales belong to groups of group_size rows: a group past the last has none, and kernels that sort "
    "rows take one of another size apart wrong.",
    remedy=f"Fetch the file again. {_REQUANTIZE}.",
)
def in_range(see: Inspection) -> Iterator[Fault]:
    if not is_gptq(see):
        return
    for name in permuted(see):
        wrong = misgrouped(see, name)
        if wrong:
            info = g_idx(see)[name][0]
            yield Fault(f"{info.name} {wrong}", tensor=info.name, file=info.file)


@rule(
    "act-order-version",
    scope="act-order",
    explanation="vLLM 0.30 gave up act order (#54809) and refuses such a checkpoint before it starts; "
    "vllm-qwen36-plugin serves it.",
    remedy=f"{_REQUANTIZE}.",
)
def version(see: Inspection) -> Iterator[Fault]:
    if not declared(see):
        return
    if not permuted(see) and g_idx(see):
        return  # act-order-flag-only says what to do about that
    limit = vllm_versions.NO_ACT_ORDER
    if not _refused(see):
        yield Fault(
            "desc_act: true costs a permutation of the input of every layer, and vLLM "
            f"{limit} and later serve it with vllm-qwen36-plugin alone",
            file="config.json",
            severity=Severity.WARNING,
        )
    elif served_by_plugin(see) and permuted(see):
        yield Fault(
            f"desc_act: true; vllm-qwen36-plugin serves it, at the cost of {_cost(see)}",
            file="config.json",
            severity=Severity.WARNING,
        )
    else:
        yield Fault(
            f"desc_act: true; stock vLLM {limit} and later, {see.vllm} among them, refuse it",
            file="config.json",
            remedy=(
                "With vllm-qwen36-plugin installed where vLLM runs it is served, without tensor parallelism, at "
                f"the cost of permuting the input of its layers: qwen36 check {{path}} --vllm {see.vllm} --plugin. "
                f"To need neither: {_REQUANTIZE[0].lower()}{_REQUANTIZE[1:]}."
                if permuted(see) and method_of(see.checkpoint.quantization_config) == _SERVED_BY_PLUGIN
                else None
            ),
        )


def _cost(see: Inspection) -> str:
    """What permuting costs in each pass, in words."""
    if see.checkpoint.files.far:
        return "permuting the input of each layer at run time"
    layers = {layer_of(see, name) for name in permuted(see)}
    folded = {name for name in layers if name.endswith(f".{_FOLDED}")}
    free = f" ({len(folded)} {_FOLDED} cost nothing)" if folded else ""
    return f"permuting the input of {len(layers) - len(folded)} layers at run time{free}"


def _refused(see: Inspection) -> bool:
    """Whether it is to be served by a vLLM whose stock refuses act order."""
    return see.vllm is not None and see.vllm.at_least(vllm_versions.NO_ACT_ORDER)


def served_by_plugin(see: Inspection) -> bool:
    """Whether vllm-qwen36-plugin is there and takes this checkpoint over from a vLLM that refuses it."""
    config = see.checkpoint.quantization_config
    return see.plugin and _refused(see) and declared(see) and method_of(config) == _SERVED_BY_PLUGIN


@rule(
    "act-order-flag-only",
    scope="act-order",
    explanation="Static groups leave g_idx trivial, so nothing needs the flag; vLLM 0.30 refuses it all the same.",
    remedy="Set the flag to false, every g_idx being proven trivial first: qwen36 repair {path}",
)
def flag_only(see: Inspection) -> Iterator[Fault]:
    if not declared(see) or not g_idx(see) or permuted(see):
        return
    refused = _refused(see) and not served_by_plugin(see)
    yield Fault(
        "desc_act: true although every g_idx is trivial"
        + (
            f"; stock vLLM {see.vllm} refuses the flag"
            if refused
            else "; stock vLLM 0.30 and later refuse the flag"
        ),
        file="config.json",
        severity=Severity.ERROR if refused else Severity.WARNING,
    )


@rule(
    "act-order-packed",
    scope="act-order",
    explanation="vLLM 0.30 gave up compressed-tensors' group act order too; weight and static order are fine.",
    remedy="Quantize again with actorder weight or static.",
)
def packed(see: Inspection) -> Iterator[Fault]:
    config = see.checkpoint.quantization_config
    if config is None or method_of(config) != "compressed-tensors":
        return
    order = compressed_tensors.act_order(config)
    if order in {"group", "dynamic"}:
        yield Fault(
            f"actorder {order}; vLLM {vllm_versions.NO_ACT_ORDER} and later refuse it",
            file="config.json",
            severity=None if _refused(see) else Severity.WARNING,
        )
        return
    stray = [name for name in see.checkpoint.loaded if name.endswith(".weight_g_idx")]
    if stray:
        yield Fault(
            f"{len(stray)} weight_g_idx tensors, though actorder is {order}: vLLM {vllm_versions.STRICT_NAMES} "
            "and later end on them",
            tensor=stray[0],
        )


def declared(see: Inspection) -> bool:
    """Whether the config asks for act order in a way that vLLM 0.30 refuses."""
    config = see.checkpoint.quantization_config
    if config is None or not is_gptq(see):
        return False
    return asks_for_act_order(config)


ACT_ORDER_RULES = (flag, fused, in_range, version, flag_only, packed)
