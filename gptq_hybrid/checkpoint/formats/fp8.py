"""FP8 with scales beside each weight, as the published FP8 originals have."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from gptq_hybrid.checkpoint.layout import LinearSpec

from ._base import FLOAT_DTYPES, Config, Expected, Format, Stored, Tensors, find_parts, strings
from ._modules import Built, Module, listed, parts_differ

_SCALES = ("weight_scale_inv", "weight_scale")
_SUFFIXES = ("weight", *_SCALES, "input_scale")
_LISTS = ("modules_to_not_convert", "ignored_layers")


def _stored(tensors: Tensors, module: str) -> Stored | None:
    parts = find_parts(tensors, module, _SUFFIXES)
    weight = parts.get("weight")
    if weight is None or not weight.dtype.startswith("F8_") or not any(s in parts for s in _SCALES):
        return None
    return Stored("fp8", parts)


def _builds(config: Config, module: Module) -> Built:
    if module.output_head:
        return Built(False)  # linears alone
    key = next((key for key in ("ignored_layers", "modules_to_not_convert") if config.get(key)), _LISTS[0])
    excluded = {module.renamed(name) for name in strings(config.get(key))}
    plain = listed(module, excluded.__contains__)
    return parts_differ(module, key) if plain is None else Built(not plain)


def block_size(config: Config) -> tuple[int, int] | None:
    """Return rows and columns of a block of weights that share a scale; None without blocks."""
    block = config.get("weight_block_size")
    if isinstance(block, list) and len(block) == 2 and all(type(n) is int and n > 0 for n in block):
        return block[0], block[1]
    return None


def _shapes(config: Config, built: Built, linear: LinearSpec) -> Expected | None:
    expected: Expected = {"weight": (frozenset({"F8_E4M3"}), (linear.out_features, linear.in_features))}
    if block := block_size(config):
        scales = (-(-linear.out_features // block[0]), -(-linear.in_features // block[1]))
        expected["weight_scale_inv"] = (FLOAT_DTYPES, scales)
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
    _builds,
    _shapes,
    _exclude_mtp,
)
