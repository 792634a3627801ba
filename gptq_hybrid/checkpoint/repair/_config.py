"""A ``quantization_config`` that says how things are stored."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import Any

from gptq_hybrid.checkpoint import formats
from gptq_hybrid.checkpoint._checkpoint import Checkpoint
from gptq_hybrid.checkpoint._json import fetch_json_object
from gptq_hybrid.checkpoint.errors import CheckpointError
from gptq_hybrid.checkpoint.formats.gptq import settings
from gptq_hybrid.checkpoint.layout import TensorLayout
from gptq_hybrid.checkpoint.quantization import GPTQ_METHODS, method_of
from gptq_hybrid.checkpoint.rules.act_order import trivial_bytes

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
    _declare_head(plan, new, known, quantized)
    if "act-order-flag-only" in rules and _all_trivial(checkpoint, layout, new):
        _drop_flag(new)
        plan.sentences.append("set desc_act to false, every g_idx being trivial")
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
    plan: Plan, config: dict[str, Any], known: formats.Format, quantized: Mapping[str, bool]
) -> None:
    dense = [module for module, packed in quantized.items() if not packed]
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


def _all_trivial(checkpoint: Checkpoint, layout: TensorLayout, config: Mapping[str, Any]) -> bool:
    """Whether every quantized module has a ``g_idx`` and it is in natural order; reads them all."""
    for linear in layout.quantized:
        found = formats.stored(checkpoint.loaded, linear.name)
        if found is None or not found.quantized:
            continue
        info = found.parts.get("g_idx")
        if info is None or info.shape != (linear.in_features,):
            return False
        _, group_size = settings(config, linear.name)
        if checkpoint.read_bytes(info) != trivial_bytes(linear.in_features, group_size):
            return False
    return True


def _drop_flag(config: dict[str, Any]) -> None:
    config["desc_act"] = False
    dynamic = config.get("dynamic")
    for overrides in dynamic.values() if isinstance(dynamic, dict) else ():
        if isinstance(overrides, dict) and overrides.get("desc_act"):
            overrides["desc_act"] = False


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
