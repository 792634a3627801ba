"""FP8 with scales beside each weight, as the published FP8 originals have."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from gptq_hybrid.checkpoint.layout import LinearSpec

from ._base import Config, Expected, Format, Stored, Tensors, find_parts, strings

_SCALES = ("weight_scale_inv", "weight_scale")
_SUFFIXES = ("weight", *_SCALES, "input_scale")
_LISTS = ("modules_to_not_convert", "ignored_layers")


def _stored(tensors: Tensors, module: str) -> Stored | None:
    parts = find_parts(tensors, module, _SUFFIXES)
    weight = parts.get("weight")
    if weight is None or not weight.dtype.startswith("F8_") or not any(s in parts for s in _SCALES):
        return None
    return Stored("fp8", parts)


def _declares(config: Config, module: str) -> bool | None:
    excluded = [name for key in _LISTS for name in strings(config.get(key))]
    return module not in excluded


def _expected(config: Config, linear: LinearSpec) -> Expected | None:
    block = config.get("weight_block_size")
    expected: Expected = {"weight": (frozenset({"F8_E4M3"}), (linear.out_features, linear.in_features))}
    if isinstance(block, list) and len(block) == 2 and all(type(n) is int and n > 0 for n in block):
        scales = (-(-linear.out_features // block[0]), -(-linear.in_features // block[1]))
        expected["weight_scale_inv"] = (frozenset({"F32", "BF16", "F16"}), scales)
    return expected


def _exclude_mtp(config: Config, modules: Sequence[str]) -> dict[str, Any]:
    out = dict(config)
    key = next((key for key in _LISTS if key in out), _LISTS[0])
    out[key] = sorted({*strings(out.get(key)), *modules})
    return out


FP8 = Format(
    "FP8",
    frozenset({"fp8"}),
    frozenset({"fp8", "compressed-tensors"}),
    _SUFFIXES,
    _stored,
    _declares,
    _expected,
    _exclude_mtp,
)
