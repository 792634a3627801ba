"""GPTQ as gptqmodel and AutoGPTQ write it: qweight, scales, qzeros, g_idx."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from gptq_hybrid.checkpoint.layout import LinearSpec
from gptq_hybrid.checkpoint.quantization import (
    GPTQ_METHODS,
    dynamic_rule,
    excluded_by_dynamic,
    with_mtp_excluded,
)

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

_SUFFIXES = ("qweight", "scales", "qzeros", "g_idx")


def _stored(tensors: Tensors, module: str) -> Stored | None:
    parts = find_parts(tensors, module, _SUFFIXES)
    if "qweight" not in parts or "scales" not in parts:
        return None
    qweight, scales = parts["qweight"].shape, parts["scales"].shape
    # AWQ uses the same names but packs along the output: qweight is [in, out / 8], not [in / 8, out].
    if len(qweight) != 2 or len(scales) != 2 or qweight[1] != scales[1]:
        return None
    return Stored("gptq", parts)


def _declares(config: Config, module: str) -> bool | None:
    if excluded_by_dynamic(config, module) or excluded_by_dynamic(config, vllm_name(module)):
        return False
    listed = strings(config.get("modules_in_block_to_quantize"))
    # vLLM takes a listed name as a substring; without a list it goes by what is stored.
    return any(name in module for name in listed) if listed else None


def settings(config: Config, module: str) -> tuple[int, int]:
    """Return bits and group size of one module, with the overrides of ``dynamic``."""
    return overridden(config, dynamic_rule(config, module))


def overridden(config: Config, rule: Config | bool | None) -> tuple[int, int]:
    """Return bits and group size under ``rule``, the result of :func:`dynamic_rule`."""
    override: Config = rule if isinstance(rule, dict) else {}
    return (
        integer(override, "bits", integer(config, "bits", 4)),
        integer(override, "group_size", integer(config, "group_size", 128)),
    )


def expected(bits: int, group_size: int, linear: LinearSpec) -> Expected:
    """Return dtypes and shapes by suffix; an int32 word holds 32/bits values.

    qweight is packed along the input, qzeros along the output.
    """
    words = {"I32"}
    groups = group_count(linear.in_features, group_size)
    return {
        "qweight": (frozenset(words), (linear.in_features * bits // 32, linear.out_features)),
        "scales": (frozenset({"F16", "BF16"}), (groups, linear.out_features)),
        "qzeros": (frozenset(words), (groups, linear.out_features * bits // 32)),
        "g_idx": (frozenset(words), (linear.in_features,)),
    }


def _expected(config: Config, linear: LinearSpec) -> Expected | None:
    bits, group_size = settings(config, linear.name)
    return expected(bits, group_size, linear) if bits in {2, 3, 4, 8} else None


def _exclude_mtp(config: Config, modules: Sequence[str]) -> dict[str, Any]:
    return with_mtp_excluded(config)


GPTQ = Format(
    "GPTQ", GPTQ_METHODS, frozenset({"gptq"}), _SUFFIXES, _stored, _declares, _expected, _exclude_mtp
)
