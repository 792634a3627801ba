"""compressed-tensors (llm-compressor): pack-quantized integers; FP8 and others are only recognised."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from gptq_hybrid.checkpoint.layout import LinearSpec
from gptq_hybrid.checkpoint.patterns import matches

from ._base import (
    FLOAT_DTYPES,
    WORDS,
    Config,
    Expected,
    Format,
    Stored,
    Tensors,
    find_parts,
    group_count,
    integer,
    strings,
)
from ._modules import Built, Module, listed, parts_differ

_SUFFIXES = (
    "weight_packed",
    "weight_scale",
    "weight_shape",
    "weight_zero_point",
    "weight_g_idx",
    "weight_global_scale",
    "input_global_scale",
    "weight",
    "input_scale",
)


def _stored(tensors: Tensors, module: str) -> Stored | None:
    parts = find_parts(tensors, module, _SUFFIXES)
    if "weight_scale" not in parts:
        return None
    if "weight_packed" in parts:
        return Stored("pack-quantized", parts)
    weight = parts.get("weight")
    return Stored("compressed-tensors", parts) if weight and weight.dtype in {"F8_E4M3", "I8", "U8"} else None


def _names(entry: str, name: str) -> bool:
    """Whether an entry of a list, a name or a pattern, is about ``name``."""
    return matches(entry[3:], name) if entry.startswith("re:") else entry == name


def _renamed(module: Module, entry: str) -> str:
    """Return an entry as vLLM has it: it renames paths, but neither patterns nor classes."""
    return entry if entry.startswith("re:") or "." not in entry else module.renamed(entry)


def _groups(config: Config, module: Module) -> dict[str, Config]:
    """Group by target; a later group replaces an earlier one with the same target."""
    groups = config.get("config_groups")
    by_target: dict[str, Config] = {}
    for group in groups.values() if isinstance(groups, dict) else ():
        if not isinstance(group, dict):
            continue
        targets = strings(group.get("targets"))
        if len(targets) == 1 and targets[0].endswith("Attention"):
            continue  # about the KV cache
        by_target |= dict.fromkeys(targets, group)
    return {_renamed(module, target): group for target, group in by_target.items()}


def _group(config: Config, module: Module) -> Config | None:
    """Find the group of a module: by its name, then by those of all its parts, then by its class."""
    groups = _groups(config, module)

    def first(name: str) -> str | None:
        return next((target for target in groups if _names(target, name)), None)

    target = first(module.name)
    if target is None and module.parts:
        of_parts = [first(part) for part in module.parts]
        target = of_parts[0] if all(of_parts) else None
    if target is None:
        kind = module.vllm_class
        target = next(
            (t for t in groups if (_names(t, kind) if t.startswith("re:") else t.lower() in kind.lower())),
            None,
        )
    return None if target is None else groups[target]


def _builds(config: Config, module: Module) -> Built:
    ignore = [_renamed(module, entry) for entry in strings(config.get("ignore"))]

    def is_listed(name: str) -> bool:
        if name == module.name and module.parts and not module.fused_patterns:
            return name in ignore
        return any(_names(entry, name) for entry in ignore)

    ignored = listed(module, is_listed)
    if ignored is None:
        return parts_differ(module, "ignore")
    group = None if ignored else _group(config, module)
    if group is None:
        return Built(False)
    return Built(True, {"format": config.get("format"), **{k: v for k, v in group.items() if v is not None}})


def act_order(config: Config) -> str | None:
    """Return ``actorder`` of the weights in lower case: "group", "weight", "static", or None."""
    groups = config.get("config_groups")
    for group in groups.values() if isinstance(groups, dict) else ():
        weights = group.get("weights") if isinstance(group, dict) else None
        order = weights.get("actorder") if isinstance(weights, dict) else None
        if order:
            return "group" if order is True else str(order).lower()
    return None


def _shapes(config: Config, built: Built, linear: LinearSpec) -> Expected | None:
    weights = built.settings.get("weights")
    if not isinstance(weights, dict) or built.settings.get("format") != "pack-quantized":
        return None
    bits = integer(weights, "num_bits", 4)
    if bits not in {4, 8}:
        return None
    size = integer(weights, "group_size", -1)
    groups = group_count(linear.in_features, size if weights.get("strategy") == "group" else -1)
    shapes: Expected = {
        "weight_packed": (WORDS, (linear.out_features, linear.in_features * bits // 32)),
        "weight_scale": (FLOAT_DTYPES, (linear.out_features, groups)),
    }
    if weights.get("symmetric") is False:
        shapes["weight_zero_point"] = (WORDS, (-(-linear.out_features * bits // 32), groups))
    return shapes


def _exclude_mtp(config: Config, modules: Sequence[str]) -> dict[str, Any]:
    out = dict(config)
    out["ignore"] = [*strings(out.get("ignore")), r"re:^mtp\..*"]
    return out


COMPRESSED_TENSORS = Format(
    "compressed-tensors",
    frozenset({"compressed-tensors"}),
    frozenset({"pack-quantized", "compressed-tensors", "fp8"}),
    _SUFFIXES,
    _stored,
    _builds,
    _shapes,
    _exclude_mtp,
    misplaced=frozenset({"weight_zero_point"}),
)
