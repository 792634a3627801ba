"""AutoRound: GPTQ's or AWQ's tensors under a config of its own."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from gptq_hybrid.checkpoint._patterns import matches
from gptq_hybrid.checkpoint.layout import LinearSpec

from . import awq, gptq
from ._base import Config, Expected, Format, Stored, Tensors, integer, strings, vllm_name

_SPECIAL = frozenset("*+?^$()[]{}|\\")


def _stored(tensors: Tensors, module: str) -> Stored | None:
    return None  # gptq.py and awq.py recognise these tensors


def _extra(config: Config, module: str) -> Config | None:
    """Look a module up in ``extra_config``: by its name, else by the first pattern that matches it."""
    extra = config.get("extra_config")
    if not isinstance(extra, Mapping):
        return None
    entry = extra.get(module)
    if entry is None:
        for pattern, candidate in extra.items():
            special = set(pattern) & _SPECIAL
            if module.endswith(f".{pattern}") or (
                special and matches(pattern, vllm_name(module), anywhere=True)
            ):
                entry = candidate
                break
    return entry if isinstance(entry, Mapping) else None


def _blocks(config: Config) -> list[str]:
    names = config.get("block_name_to_quantize") or config.get("to_quant_block_names")
    return [part.strip() for part in names.split(",")] if isinstance(names, str) else strings(names)


def _declares(config: Config, module: str) -> bool | None:
    extra = _extra(config, module)
    if extra is not None and "bits" in extra:
        return integer(extra, "bits", 4) < 16
    blocks = _blocks(config)
    return any(module.startswith(block) for block in blocks) if blocks else True


def _expected(config: Config, linear: LinearSpec) -> Expected | None:
    extra = _extra(config, linear.name) or {}
    bits = integer(extra, "bits", integer(config, "bits", 4))
    group_size = integer(extra, "group_size", integer(config, "group_size", 128))
    if bits not in {2, 4, 8}:
        return None
    if "awq" in str(config.get("packing_format", "")):
        return awq.AWQ.expected({"bits": bits, "group_size": group_size}, linear)
    shapes = gptq.expected(bits, group_size, linear)
    del shapes["g_idx"]  # AutoRound writes none
    return shapes


def _exclude_mtp(config: Config, modules: Sequence[str]) -> dict[str, Any]:
    out = dict(config)
    extra = out.get("extra_config")
    out["extra_config"] = {
        **(extra if isinstance(extra, Mapping) else {}),
        r"^mtp\..*": {"bits": 16, "data_type": "float"},
    }
    return out


AUTO_ROUND = Format(
    "AutoRound",
    frozenset({"auto-round", "auto_round", "intel/auto-round", "inc"}),
    frozenset({"gptq", "awq"}),
    ("qweight", "scales", "qzeros", "g_idx"),
    _stored,
    _declares,
    _expected,
    _exclude_mtp,
)
