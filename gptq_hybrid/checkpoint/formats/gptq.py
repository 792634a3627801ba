"""GPTQ as gptqmodel and AutoGPTQ write it: qweight, scales, qzeros, g_idx."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from gptq_hybrid.checkpoint.layout import LinearSpec
from gptq_hybrid.checkpoint.quantization import (
    GPTQ_METHODS,
    dynamic_rule,
    with_mtp_excluded,
)

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
from ._modules import Built, Module, all_or_none, parts_differ

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


def _builds(config: Config, module: Module) -> Built:
    if module.output_head and not config.get("lm_head"):
        return Built(False)
    # vLLM asks the rules about a fused module's name, and about no other.
    rule = dynamic_rule(config, module.name)
    if rule is False:
        return Built(False)
    bits, group_size = overridden(config, rule)
    settings = {"bits": bits, "group_size": group_size}
    names = [module.renamed(name) for name in strings(config.get("modules_in_block_to_quantize"))]
    if not names:
        return Built(None, settings)  # packed is whatever owns integers
    # A listed name may be any piece of a module's.
    quantized = all_or_none(module.parts or (module.name,), lambda part: any(n in part for n in names))
    if quantized is None:
        return parts_differ(module, "modules_in_block_to_quantize")
    return Built(quantized, settings)


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
    groups = group_count(linear.in_features, group_size)
    return {
        "qweight": (WORDS, (linear.in_features * bits // 32, linear.out_features)),
        "scales": (FLOAT_DTYPES, (groups, linear.out_features)),
        "qzeros": (WORDS, (groups, linear.out_features * bits // 32)),
        "g_idx": (WORDS, (linear.in_features,)),
    }


def _shapes(config: Config, built: Built, linear: LinearSpec) -> Expected | None:
    bits, group_size = overridden(config, built.settings)
    return expected(bits, group_size, linear) if bits in {2, 3, 4, 8} else None


def _exclude_mtp(config: Config, modules: Sequence[str]) -> dict[str, Any]:
    return with_mtp_excluded(config)


GPTQ = Format(
    "GPTQ",
    GPTQ_METHODS,
    frozenset({"gptq"}),
    _SUFFIXES,
    _stored,
    _builds,
    _shapes,
    _exclude_mtp,
    # g_idx is ignored unless desc_act is true, and from vLLM 0.30 on dropped unread. Symmetric kernels have the
    # zero point built in.
    frozenset({"g_idx", "qzeros"}),
)
