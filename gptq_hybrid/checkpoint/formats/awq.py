"""AWQ: qweight, scales and qzeros, packed along the output."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from gptq_hybrid.checkpoint.layout import LinearSpec

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

_SUFFIXES = ("qweight", "scales", "qzeros")


def _stored(tensors: Tensors, module: str) -> Stored | None:
    parts = find_parts(tensors, module, _SUFFIXES)
    if "qweight" not in parts or "scales" not in parts:
        return None
    qweight, scales = parts["qweight"].shape, parts["scales"].shape
    along_output = len(qweight) == len(scales) == 2 and qweight[1] < scales[1]
    return Stored("awq", parts) if along_output else None


def _builds(config: Config, module: Module) -> Built:
    if module.output_head and not config.get("lm_head"):
        return Built(False)
    excluded = [module.renamed(name) for name in strings(config.get("modules_to_not_convert"))]
    if excluded:  # vLLM takes an entry as a substring
        plain = listed(module, lambda name: any(entry in name for entry in excluded))
        return parts_differ(module, "modules_to_not_convert") if plain is None else Built(not plain)
    # Without a list vLLM leaves unquantized whatever owns tensors but no packed ones, by substring again. The
    # owner of A_log and dt_bias is `….linear_attn`, which takes in all projections of a Gated-DeltaNet.
    return Built(False if ".linear_attn." in module.name else None)


def expected(bits: int, group_size: int, linear: LinearSpec) -> Expected:
    """Return dtypes and shapes by suffix; all words are packed along the output."""
    groups = group_count(linear.in_features, group_size)
    packed = linear.out_features * bits // 32
    return {
        "qweight": (WORDS, (linear.in_features, packed)),
        "scales": (FLOAT_DTYPES, (groups, linear.out_features)),
        "qzeros": (WORDS, (groups, packed)),
    }


def _shapes(config: Config, built: Built, linear: LinearSpec) -> Expected | None:
    bits = integer(config, "bits", integer(config, "w_bit", 4))
    return expected(bits, integer(config, "group_size", integer(config, "q_group_size", 128)), linear)


def _exclude_mtp(config: Config, modules: Sequence[str]) -> dict[str, Any]:
    out = dict(config)
    excluded = strings(out.get("modules_to_not_convert"))
    if excluded:
        out["modules_to_not_convert"] = [*excluded, *modules]
    return out


AWQ = Format(
    "AWQ",
    frozenset({"awq", "awq_marlin", "auto_awq"}),
    frozenset({"awq"}),
    _SUFFIXES,
    _stored,
    _builds,
    _shapes,
    _exclude_mtp,
)
