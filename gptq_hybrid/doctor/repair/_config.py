"""A ``quantization_config`` that says how things are stored."""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from typing import Any

from gptq_hybrid.checkpoint import Checkpoint, TensorLayout, formats
from gptq_hybrid.checkpoint.formats import vllm_name
from gptq_hybrid.checkpoint.formats.gptq import settings
from gptq_hybrid.checkpoint.json_files import fetch_json_object
from gptq_hybrid.checkpoint.quantization import GPTQ_METHODS, excluded_by_dynamic, method_of
from gptq_hybrid.common.errors import CheckpointError
from gptq_hybrid.doctor.findings import Inspection, some
from gptq_hybrid.doctor.rules.g_idx import order_is_whole, trivial_bytes
from gptq_hybrid.doctor.rules.linears import is_gptq

from ._plan import Plan

_COPY = "quantize_config.json"
_SHARED = ("bits", "group_size", "sym", "desc_act", "dynamic")


def plan_config(plan: Plan, checkpoint: Checkpoint, layout: TensorLayout, rules: set[str]) -> None:
    """Correct ``config.json`` and ``quantize_config.json`` for the findings named in ``rules``."""
    old = checkpoint.quantization_config
    known = formats.format_of(old)
    if old is None or known is None:
        return
    new: dict[str, Any] = copy.deepcopy(dict(old))
    quantized = _head_forms(plan, checkpoint, layout)
    if "dynamic" in new and new["dynamic"] is None:
        del new["dynamic"]
        plan.sentences.append("remove the null `dynamic` from quantization_config")
    names = {spec.name for spec in layout.mtp}
    others = [
        s.name.removesuffix(".weight") for s in layout.dense if len(s.shape) > 1 and s.name not in names
    ]
    _declare_head(plan, new, known, quantized, others)
    if "act-order-flag-only" in rules and _all_trivial(plan, checkpoint, layout, new):
        _drop_flag(new)
        plan.sentences.append("set desc_act to false, every g_idx being trivial")
    if "g-idx-flag" in rules and _all_in_order(checkpoint, layout):
        _set_flag(new)
        plan.sentences.append("set desc_act to true, every module being in act order")
    if new != old:
        plan.documents["config.json"] = _with(checkpoint.config, old, new)
    _step_copy(plan, checkpoint, new)


def _head_forms(plan: Plan, checkpoint: Checkpoint, layout: TensorLayout) -> dict[str, bool]:
    """Whether each linear of the head is stored quantized, once the plan is carried out; absent ones left out."""
    written = {info.name: info for file in plan.shards.values() for _, info in file.tensors}
    if any(name.startswith("mtp.") for name in written):
        everything = written
    else:
        everything = {**checkpoint.stray, **checkpoint.loaded}
    forms: dict[str, bool] = {}
    for spec in layout.mtp:
        module = spec.name.removesuffix(".weight")
        found = formats.stored(everything, module) if len(spec.shape) == 2 else None
        if found is not None:
            forms[module] = found.quantized
    return forms


def _declare_head(
    plan: Plan,
    config: dict[str, Any],
    known: formats.Format,
    quantized: Mapping[str, bool],
    others: Sequence[str],
) -> None:
    dense = [module for module, packed in quantized.items() if not packed]
    packed_head = [module for module, packed in quantized.items() if packed]
    if known is formats.GPTQ and any(known.declares(config, module) is False for module in packed_head):
        _include_head(plan, config, known, quantized, others)
        return
    if not any(known.declares(config, module) for module in dense):
        return
    corrected = known.exclude_mtp(config, dense)
    # A head of which part is quantized by the same list or rule cannot be told apart here.
    if all(known.declares(corrected, module) in {None, packed} for module, packed in quantized.items()):
        config.clear()
        config.update(corrected)
        plan.sentences.append(
            f"tell quantization_config that {len(dense)} linears of the MTP head are in BF16"
        )


def _include_head(
    plan: Plan,
    config: dict[str, Any],
    known: formats.Format,
    quantized: Mapping[str, bool],
    others: Sequence[str],
) -> None:
    """Remove the rules of ``dynamic`` that leave a quantized head alone, if they are about nothing else."""
    dynamic = dict(config["dynamic"])
    for pattern in [p for p in dynamic if p.startswith("-:")]:
        alone = {**config, "dynamic": {pattern: dynamic[pattern]}}
        if any(packed and excluded_by_dynamic(alone, module) for module, packed in quantized.items()):
            if any(excluded_by_dynamic(alone, n) or excluded_by_dynamic(alone, vllm_name(n)) for n in others):
                return
            del dynamic[pattern]
    corrected = {**config, "dynamic": dynamic}
    if all(known.declares(corrected, module) in {None, packed} for module, packed in quantized.items()):
        gone = [pattern for pattern in config["dynamic"] if pattern not in dynamic]
        config["dynamic"] = dynamic
        plan.sentences.append(
            f"remove {some(map(repr, gone))} from `dynamic`: the MTP head is stored quantized"
        )


def _all_trivial(plan: Plan, checkpoint: Checkpoint, layout: TensorLayout, config: Mapping[str, Any]) -> bool:
    """Whether every quantized module has a ``g_idx`` and all are in natural order; reads them all.

    Those of a quantized head count: without the flag vLLM ignores them too.
    """
    own_head = not any(name.startswith("mtp.") for file in plan.shards.values() for name in file.names)
    loaded = {n: i for n, i in checkpoint.loaded.items() if own_head or not n.startswith("mtp.")}
    modules = {n.removesuffix(".qweight") for n in loaded if n.endswith(".qweight")}
    modules |= {n.removesuffix(".g_idx") for n in loaded if n.endswith(".g_idx")}
    rows = {linear.name: linear.in_features for linear in layout.quantized}
    rows |= {s.name.removesuffix(".weight"): s.shape[1] for s in layout.mtp if len(s.shape) == 2}
    for module in modules:
        info = loaded.get(f"{module}.g_idx")
        if info is None or info.dtype != "I32" or len(info.shape) != 1:
            return False
        if info.shape[0] != rows.get(module, info.shape[0]):
            return False
        _, group_size = settings(config, module)
        if checkpoint.read_bytes(info) != trivial_bytes(info.shape[0], group_size):
            return False
    return bool(modules)


def _drop_flag(config: dict[str, Any]) -> None:
    config["desc_act"] = False
    dynamic = config.get("dynamic")
    for overrides in dynamic.values() if isinstance(dynamic, dict) else ():
        if isinstance(overrides, dict) and overrides.get("desc_act"):
            overrides["desc_act"] = False


def _all_in_order(checkpoint: Checkpoint, layout: TensorLayout) -> bool:
    """Whether GPTQ with act order has made every packed module, so that the flag alone is wrong."""
    see = Inspection(checkpoint, layout)
    return is_gptq(see) and order_is_whole(see)


def _set_flag(config: dict[str, Any]) -> None:
    config["desc_act"] = True
    dynamic = config.get("dynamic")
    for overrides in dynamic.values() if isinstance(dynamic, dict) else ():
        if isinstance(overrides, dict) and "desc_act" in overrides:
            overrides["desc_act"] = True


def _with(config: Mapping[str, Any], old: Mapping[str, Any], new: dict[str, Any]) -> dict[str, Any]:
    """``config`` with ``new`` where ``old`` was found."""
    out: dict[str, Any] = copy.deepcopy(dict(config))
    text = out.get("text_config")
    for owner in (out, text if isinstance(text, dict) else {}):
        for key in ("quantization_config", "compression_config"):
            if owner.get(key) == old:
                owner[key] = new
                return out
    raise AssertionError("quantization_config is in none of the places it is read from")


def _step_copy(plan: Plan, checkpoint: Checkpoint, config: Mapping[str, Any]) -> None:
    """gptqmodel's own copy of the settings, kept in step with the one vLLM reads."""
    if method_of(config) not in GPTQ_METHODS or not checkpoint.has(_COPY):
        return
    try:
        content = fetch_json_object(checkpoint.files, _COPY)
    except CheckpointError:
        content = {}
    if all(content.get(key) == config.get(key) for key in _SHARED):
        return
    for key in _SHARED:
        if key in config:
            content[key] = copy.deepcopy(config[key])
        else:
            content.pop(key, None)
    plan.documents[_COPY] = content
    plan.sentences.append(f"bring {_COPY} in step with config.json")
