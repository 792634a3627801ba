"""AutoRound: GPTQ's or AWQ's tensors under a config of its own."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from gptq_hybrid.checkpoint.layout import LinearSpec
from gptq_hybrid.checkpoint.patterns import matches

from . import awq, gptq
from ._base import Config, Expected, Format, Stored, Tensors, integer, strings
from ._modules import Built, Module, parts_differ

_SPECIAL = frozenset("*+?^$()[]{}|\\")


def _stored(tensors: Tensors, module: str) -> Stored | None:
    return None  # gptq.py and awq.py recognise these tensors


def _entry(extra: Mapping[str, Any], name: str) -> Config | None:
    """Look a name up: as it is, else by the first key with a regular expression in it that matches within."""
    key = name if name in extra else None
    if key is None:
        key = next((k for k in extra if set(k) & _SPECIAL and matches(k, name, anywhere=True)), None)
    entry = None if key is None else extra[key]
    return entry if isinstance(entry, Mapping) else None


def _blocks(config: Config) -> list[str]:
    names = config.get("block_name_to_quantize") or config.get("to_quant_block_names")
    return names.split(",") if isinstance(names, str) else strings(names)


def _builds(config: Config, module: Module) -> Built:
    bits, group_size = integer(config, "bits", 4), integer(config, "group_size", 128)

    def settled(entry: Config | None, quantized: bool = True) -> tuple[int, int]:
        default = (bits, group_size) if quantized else (16, -1)
        entry = entry or {}
        return integer(entry, "bits", default[0]), integer(entry, "group_size", default[1])

    def built(settings: tuple[int, int]) -> Built:
        return Built(settings[0] < 16, dict(zip(("bits", "group_size"), settings, strict=True)))

    given = config.get("extra_config")
    extra = {module.renamed(k): v for k, v in given.items()} if isinstance(given, Mapping) else {}
    for name in (module.name, f"model.{module.name}"):
        entry = extra.get(name)
        if isinstance(entry, Mapping) and integer(entry, "bits", 16) >= 16:
            return Built(False)
    if module.name in extra:
        return built(settled(_entry(extra, module.name)))
    # Short names: of what vLLM builds, not of its parts.
    short = next((key for key in extra if module.name.endswith(f".{key}")), None)
    if short is not None:
        return built(settled(_entry(extra, short)))
    quantized = not module.output_head
    if blocks := _blocks(config):
        quantized = any(module.name.startswith(module.renamed(block)) for block in blocks)
    if any(_entry(extra, part) is not None for part in module.parts):
        each = {settled(_entry(extra, part), quantized) for part in module.parts}
        return built(each.pop()) if len(each) == 1 else parts_differ(module, "extra_config")
    return built(settled(_entry(extra, module.name), quantized))


def _shapes(config: Config, built: Built, linear: LinearSpec) -> Expected | None:
    bits, group_size = gptq.overridden(config, built.settings)
    if bits not in {2, 4, 8}:
        return None
    if "awq" in str(config.get("packing_format", "")):
        return awq.expected(bits, group_size, linear)
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
    _builds,
    _shapes,
    _exclude_mtp,
)
