"""compressed-tensors (llm-compressor): pack-quantized integers; FP8 and others are only recognised."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from gptq_hybrid.checkpoint._patterns import matches
from gptq_hybrid.checkpoint.layout import LinearSpec

from ._base import (
    Config,
    Expected,
    Format,
    Stored,
    Tensors,
    find_parts,
    group_count,
    integer,
    strings,
    vllm_name,
)

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


def _named(patterns: list[str], module: str) -> bool:
    return any(
        # vLLM maps plain names to its own, but not patterns.
        matches(pattern[3:], vllm_name(module)) if pattern.startswith("re:") else pattern == module
        for pattern in patterns
    )


def _declares(config: Config, module: str) -> bool | None:
    if _named(strings(config.get("ignore")), module):
        return False
    groups = config.get("config_groups")
    if not isinstance(groups, dict):
        return None
    targets = [
        t for group in groups.values() if isinstance(group, dict) for t in strings(group.get("targets"))
    ]
    return "Linear" in targets or _named(targets, module)


def _weights(config: Config, module: str) -> Config | None:
    """Settings of a module's weights, from the first group whose targets name it."""
    groups = config.get("config_groups")
    for group in groups.values() if isinstance(groups, dict) else ():
        if not isinstance(group, dict) or not isinstance(group.get("weights"), dict):
            continue
        targets = strings(group.get("targets"))
        if "Linear" in targets or _named(targets, module):
            weights: Config = group["weights"]
            return weights
    return None


def act_order(config: Config) -> str | None:
    """Return ``actorder`` of the weights in lower case: "group", "weight", "static", or None."""
    groups = config.get("config_groups")
    for group in groups.values() if isinstance(groups, dict) else ():
        weights = group.get("weights") if isinstance(group, dict) else None
        order = weights.get("actorder") if isinstance(weights, dict) else None
        if order:
            return "group" if order is True else str(order).lower()
    return None


def _expected(config: Config, linear: LinearSpec) -> Expected | None:
    weights = _weights(config, linear.name)
    if weights is None or config.get("format") != "pack-quantized":
        return None
    bits = integer(weights, "num_bits", 4)
    if bits not in {4, 8}:
        return None
    size = integer(weights, "group_size", -1)
    groups = group_count(linear.in_features, size if weights.get("strategy") == "group" else -1)
    return {
        "weight_packed": (frozenset({"I32"}), (linear.out_features, linear.in_features * bits // 32)),
        "weight_scale": (frozenset({"BF16", "F16", "F32"}), (linear.out_features, groups)),
    }


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
    _declares,
    _expected,
    _exclude_mtp,
)
