"""AWQ: qweight, scales and qzeros, packed along the output."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from gptq_hybrid.checkpoint.layout import LinearSpec

from ._base import Config, Expected, Format, Stored, Tensors, find_parts, group_count, integer, strings

_SUFFIXES = ("qweight", "scales", "qzeros")


def _stored(tensors: Tensors, module: str) -> Stored | None:
    parts = find_parts(tensors, module, _SUFFIXES)
    if "qweight" not in parts or "scales" not in parts:
        return None
    qweight, scales = parts["qweight"].shape, parts["scales"].shape
    along_output = len(qweight) == len(scales) == 2 and qweight[1] < scales[1]
    return Stored("awq", parts) if along_output else None


def _declares(config: Config, module: str) -> bool | None:
    excluded = strings(config.get("modules_to_not_convert"))
    if excluded:
        return not any(name in module for name in excluded)  # vLLM takes an entry as a substring
    # Without a list vLLM leaves unquantized whatever owns tensors but no packed ones, by substring again. The
    # owner of A_log and dt_bias is `….linear_attn`, which takes in all projections of a Gated-DeltaNet.
    return False if ".linear_attn." in module else None


def _expected(config: Config, linear: LinearSpec) -> Expected | None:
    bits = integer(config, "bits", integer(config, "w_bit", 4))
    groups = group_count(
        linear.in_features, integer(config, "group_size", integer(config, "q_group_size", 128))
    )
    packed = linear.out_features * bits // 32
    return {
        "qweight": (frozenset({"I32"}), (linear.in_features, packed)),
        "scales": (frozenset({"F16", "BF16"}), (groups, linear.out_features)),
        "qzeros": (frozenset({"I32"}), (groups, packed)),
    }


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
    _declares,
    _expected,
    _exclude_mtp,
)
