"""Rules: values of ``quantization_config`` that vLLM ends on, format by format."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from gptq_hybrid.checkpoint import formats
from gptq_hybrid.checkpoint.patterns import complaint
from gptq_hybrid.doctor.findings import Fault, Inspection, rule

from .linears import is_gptq, linears


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
    if is_gptq(inspection):
        messages = _gptq(config)
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


def _auto_round(inspection: Inspection, config: Mapping[str, Any]) -> Iterator[str]:
    bits, packing = config.get("bits", 4), str(config.get("packing_format", "auto_round:auto_gptq"))
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
    elif config.get("activation_scheme") != "dynamic":
        scheme = config.get("activation_scheme")
        yield f"activation_scheme is {scheme!r}; with weight_block_size vLLM takes nothing but 'dynamic'"


QUANTIZATION_VALUES_RULES = (values,)
