"""Rules: values of ``quantization_config`` that vLLM ends on, format by format."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from itertools import chain
from typing import Any

from gptq_hybrid.checkpoint import formats
from gptq_hybrid.checkpoint.formats import fp8
from gptq_hybrid.checkpoint.patterns import complaint, matches
from gptq_hybrid.doctor.findings import Fault, Inspection, rule

from .linears import is_gptq, linears
from .modules import of_body, of_draft

_MXFP_PACKING = "auto_round:llm_compressor"
# Formats of compressed-tensors that store packed words.
_PACKED_FORMATS = frozenset({"pack-quantized", "marlin-24", "nvfp4-pack-quantized", "mxfp4-pack-quantized"})


@rule(
    "quantization-values",
    scope="quantized",
    explanation="vLLM divides by these values, compiles them as patterns, and looks kernels up by them.",
    remedy="Quantize again, or correct the value if the tensors are stored otherwise than it says.",
)
def values(inspection: Inspection) -> Iterator[Fault]:
    config = inspection.checkpoint.quantization_config
    declared = formats.declared_format(config)
    if config is None or declared is None:
        return
    messages: Iterator[str]
    if is_gptq(inspection):
        messages = chain(_gptq(config), _overrides(inspection, config))
    elif declared is formats.AWQ:
        messages = _awq(config)
    elif declared is formats.COMPRESSED_TENSORS:
        messages = _compressed_tensors(inspection)
    elif declared is formats.AUTO_ROUND:
        messages = _auto_round(inspection, config)
    elif declared is formats.FP8:
        messages = _fp8(inspection, config)
    else:
        return
    for message in messages:
        yield Fault(message, file="config.json")


def _gptq(config: Mapping[str, Any]) -> Iterator[str]:
    if isinstance(bits := config.get("bits"), float):
        yield f"bits is {bits!r}, which vLLM takes for a size; it has to be an integer"
    dynamic = config.get("dynamic")
    for pattern in dynamic if isinstance(dynamic, Mapping) else ():
        if error := complaint(pattern.removeprefix("-:").removeprefix("+:")):
            yield f"the pattern {pattern!r} of `dynamic` is no regular expression: {error}"


def _overrides(inspection: Inspection, config: Mapping[str, Any]) -> Iterator[str]:
    dynamic = config.get("dynamic")
    for pattern, override in dynamic.items() if isinstance(dynamic, Mapping) else ():
        if pattern.startswith("-:") or isinstance(override, Mapping):
            continue
        names = (owner.module.name for owner in (*of_body(inspection), *of_draft(inspection)))
        if any(matches(pattern.removeprefix("+:"), name) for name in names):
            yield f"the rule {pattern!r} of `dynamic` holds {override!r}; vLLM wants an object of settings"


def _awq(config: Mapping[str, Any]) -> Iterator[str]:
    if config.get("zero_point", True) is False:
        yield "zero_point is false, and vLLM has no kernel for AWQ without zero points"


def _compressed_tensors(inspection: Inspection) -> Iterator[str]:
    for owner in (*of_body(inspection), *of_draft(inspection)):
        stored = next((s for _, s in owner.parts if s.form == "pack-quantized"), None)
        words = None if stored is None else stored.parts["weight_packed"]
        if words is None or words.dtype not in formats.WORDS or not owner.built.quantized:
            continue
        form, weights = owner.built.settings.get("format"), owner.built.settings.get("weights")
        if form not in _PACKED_FORMATS:
            yield f"format is {form!r}, and {words.name} is packed, which is 'pack-quantized'"
            return
        kind = weights.get("type", "int") if isinstance(weights, Mapping) else "int"
        if form == "pack-quantized" and kind != "int":
            yield f"the weights' type is {kind!r}, and {words.name} holds packed integers"
            return


def _auto_round(inspection: Inspection, config: Mapping[str, Any]) -> Iterator[str]:
    bits, packing = config.get("bits", 4), str(config.get("packing_format", "auto_round:auto_gptq"))
    data_type = str(config.get("data_type", "int"))
    if data_type.startswith("mx_fp") and packing != _MXFP_PACKING:
        yield f"data_type is {data_type!r}, which vLLM takes with packing_format {_MXFP_PACKING!r} alone"
    if config.get("sym", True) is False and "gptq" in packing:
        yield f"sym is false, and vLLM loads {packing} in symmetric form alone"
    if type(bits) is not int or bits in (2, 4, 8) or "gptq" not in packing:
        return  # the rule quantized-shape knows these widths
    for linear, stored in linears(inspection):
        words = stored.parts.get("qweight")
        if words is not None and words.shape and words.shape[0] * 32 != linear.in_features * bits:
            rows = f"{words.shape[0]} words of 32 bits for {linear.in_features} rows"
            yield f"bits is {bits}, but {words.name} has {rows}"
            return


def _fp8(inspection: Inspection, config: Mapping[str, Any]) -> Iterator[str]:
    blocks = config.get("weight_block_size")
    if blocks is None:
        scaled = next((s for _, s in linears(inspection) if "weight_scale_inv" in s.parts), None)
        if scaled is not None:
            name = scaled.parts["weight_scale_inv"].name
            yield f"weight_block_size is absent, but {name} has a scale for each block"
    elif fp8.block_size(config) is None:
        yield f"weight_block_size is {blocks!r}; vLLM wants rows and columns of a block"
    elif config.get("activation_scheme") != "dynamic":
        scheme = config.get("activation_scheme")
        yield f"activation_scheme is {scheme!r}; with weight_block_size vLLM takes nothing but 'dynamic'"


QUANTIZATION_VALUES_RULES = (values,)
