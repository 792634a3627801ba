"""Correct a ``quantization_config``, so that it says how things are stored."""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from gptq_hybrid.checkpoint import Checkpoint, TensorLayout, family_for, formats
from gptq_hybrid.checkpoint.formats import vllm_name
from gptq_hybrid.checkpoint.formats.gptq import settings
from gptq_hybrid.checkpoint.g_idx import is_natural
from gptq_hybrid.checkpoint.json_files import fetch_json_object
from gptq_hybrid.checkpoint.quantization import GPTQ_METHODS, excluded_by_dynamic, quant_method
from gptq_hybrid.common.errors import CheckpointError
from gptq_hybrid.doctor.findings import Inspection, some
from gptq_hybrid.doctor.rules.g_idx import order_is_whole
from gptq_hybrid.doctor.rules.linears import is_gptq

from ._changes import Changes

_COPY = "quantize_config.json"
_SHARED = ("bits", "group_size", "sym", "desc_act", "dynamic")


def correct_config(changes: Changes, checkpoint: Checkpoint, layout: TensorLayout, rules: set[str]) -> None:
    """Correct ``config.json`` and ``quantize_config.json`` for the findings of ``rules``."""
    old = checkpoint.quantization_config
    taken = _from_copy(checkpoint) if old is None and "quantization-undeclared" in rules else None
    if taken is not None:
        checkpoint = replace(checkpoint, config={**checkpoint.config, "quantization_config": taken})
        changes.documents["config.json"] = dict(checkpoint.config)
        changes.sentences.append(f"take quantization_config from {_COPY}")
        old = taken
    declared = formats.declared_format(old)
    if old is None or declared is None:
        return
    new: dict[str, Any] = copy.deepcopy(dict(old))
    quantized = _head_is_quantized(changes, checkpoint, layout)
    if "dynamic" in new and new["dynamic"] is None:
        del new["dynamic"]
        changes.sentences.append("remove the null `dynamic` from quantization_config")
    head = {spec.name for spec in layout.mtp}
    others = [s.name.removesuffix(".weight") for s in layout.dense if len(s.shape) > 1 and s.name not in head]
    _declare_head(changes, new, declared, quantized, others)
    if "act-order-flag-only" in rules and _all_natural(changes, checkpoint, layout, new):
        _drop_flag(new)
        changes.sentences.append("set desc_act to false, as every g_idx is in natural order")
    if "g-idx-flag" in rules and _all_in_act_order(checkpoint, layout):
        _set_flag(new)
        changes.sentences.append("set desc_act to true, as every module is in act order")
    if new != old:
        changes.documents["config.json"] = _with(checkpoint.config, old, new)
    _update_copy(changes, checkpoint, new)


def _from_copy(checkpoint: Checkpoint) -> dict[str, Any] | None:
    """Return the settings that ``quantize_config.json`` has, if they are of a format that is known."""
    if not checkpoint.has(_COPY):
        return None
    try:
        content = fetch_json_object(checkpoint.files, _COPY)
    except CheckpointError:
        return None
    # AutoGPTQ left the method out.
    content = (
        content if "quant_method" in content or "bits" not in content else {"quant_method": "gptq", **content}
    )
    return content if formats.declared_format(content) is not None else None


def _head_is_quantized(changes: Changes, checkpoint: Checkpoint, layout: TensorLayout) -> dict[str, bool]:
    """Whether each linear of the head will be stored quantized after the changes; absent ones are left out."""
    if any(name.startswith("mtp.") for name in changes.written):
        tensors = changes.written
    else:
        tensors = {**checkpoint.stray, **checkpoint.loaded}
    forms = {linear.name: formats.stored(tensors, linear.name) for linear in layout.mtp_linears}
    return {module: stored.quantized for module, stored in forms.items() if stored is not None}


def _declare_head(
    changes: Changes,
    config: dict[str, Any],
    declared: formats.Format,
    quantized: Mapping[str, bool],
    others: Sequence[str],
) -> None:
    """Make ``config`` agree with the head, given by whether each of its linears is quantized."""
    dense = [module for module, packed in quantized.items() if not packed]
    packed_head = [module for module, packed in quantized.items() if packed]
    if declared is formats.GPTQ and any(declared.declares(config, module) is False for module in packed_head):
        _include_head(changes, config, declared, quantized, others)
        return
    if not any(declared.declares(config, module) for module in dense):
        return
    corrected = declared.exclude_mtp(config, dense)
    # The same list or rule may quantize a part of the head; then no exclusion is right.
    if all(declared.declares(corrected, module) in {None, packed} for module, packed in quantized.items()):
        config.clear()
        config.update(corrected)
        changes.sentences.append(
            f"tell quantization_config that {len(dense)} linears of the MTP head are in BF16"
        )


def _include_head(
    changes: Changes,
    config: dict[str, Any],
    declared: formats.Format,
    quantized: Mapping[str, bool],
    others: Sequence[str],
) -> None:
    """Remove the rules of ``dynamic`` that leave a quantized head out, if they are about nothing else."""
    dynamic = dict(config["dynamic"])
    for pattern in [p for p in dynamic if p.startswith("-:")]:
        alone = {**config, "dynamic": {pattern: dynamic[pattern]}}
        if any(packed and excluded_by_dynamic(alone, module) for module, packed in quantized.items()):
            if any(excluded_by_dynamic(alone, n) or excluded_by_dynamic(alone, vllm_name(n)) for n in others):
                return
            del dynamic[pattern]
    corrected = {**config, "dynamic": dynamic}
    if all(declared.declares(corrected, module) in {None, packed} for module, packed in quantized.items()):
        removed = [pattern for pattern in config["dynamic"] if pattern not in dynamic]
        config["dynamic"] = dynamic
        changes.sentences.append(
            f"remove {some(map(repr, removed))} from `dynamic`: the MTP head is stored quantized"
        )


def _all_natural(
    changes: Changes, checkpoint: Checkpoint, layout: TensorLayout, config: Mapping[str, Any]
) -> bool:
    """Whether every quantized module has a ``g_idx`` and all are in natural order; reads them all.

    Those of a quantized head count: without the flag vLLM ignores them too.
    """
    own_head = not any(name.startswith("mtp.") for name in changes.written)
    loaded = {n: i for n, i in checkpoint.loaded.items() if own_head or not n.startswith("mtp.")}
    modules = {n.removesuffix(".qweight") for n in loaded if n.endswith(".qweight")}
    modules |= {n.removesuffix(".g_idx") for n in loaded if n.endswith(".g_idx")}
    features = {linear.name: linear.in_features for linear in (*layout.quantized, *layout.mtp_linears)}
    for module in modules:
        info = loaded.get(f"{module}.g_idx")
        if info is None or info.dtype != "I32" or len(info.shape) != 1:
            return False
        if info.shape[0] != features.get(module, info.shape[0]):
            return False
        _, group_size = settings(config, module)
        if not is_natural(checkpoint.read_bytes(info), info.shape[0], group_size):
            return False
    return bool(modules)


def _drop_flag(config: dict[str, Any]) -> None:
    config["desc_act"] = False
    dynamic = config.get("dynamic")
    for overrides in dynamic.values() if isinstance(dynamic, dict) else ():
        if isinstance(overrides, dict) and overrides.get("desc_act"):
            overrides["desc_act"] = False


def _all_in_act_order(checkpoint: Checkpoint, layout: TensorLayout) -> bool:
    """Whether GPTQ with act order made every packed module, so that only the flag is wrong."""
    inspection = Inspection(checkpoint, family_for(checkpoint.config), layout)
    return is_gptq(inspection) and order_is_whole(inspection)


def _set_flag(config: dict[str, Any]) -> None:
    config["desc_act"] = True
    dynamic = config.get("dynamic")
    for overrides in dynamic.values() if isinstance(dynamic, dict) else ():
        if isinstance(overrides, dict) and "desc_act" in overrides:
            overrides["desc_act"] = True


def _with(config: Mapping[str, Any], old: Mapping[str, Any], new: dict[str, Any]) -> dict[str, Any]:
    """Return ``config`` with ``new`` in the place of ``old``."""
    out: dict[str, Any] = copy.deepcopy(dict(config))
    text = out.get("text_config")
    for owner in (out, text if isinstance(text, dict) else {}):
        for key in ("quantization_config", "compression_config"):
            if owner.get(key) == old:
                owner[key] = new
                return out
    raise AssertionError("quantization_config is in none of the places it is read from")


def _update_copy(changes: Changes, checkpoint: Checkpoint, config: Mapping[str, Any]) -> None:
    """Make gptqmodel's own copy of the settings agree with the one vLLM reads."""
    if quant_method(config) not in GPTQ_METHODS or not checkpoint.has(_COPY):
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
    changes.documents[_COPY] = content
    changes.sentences.append(f"make {_COPY} agree with config.json")
