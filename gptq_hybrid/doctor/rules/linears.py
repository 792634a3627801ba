"""The linears of a checkpoint: how each is stored, and the names under which vLLM looks it up in the config."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from gptq_hybrid.checkpoint import LinearSpec, TensorSpec, formats
from gptq_hybrid.checkpoint.formats import Stored, module_of
from gptq_hybrid.checkpoint.formats.gptq import overridden
from gptq_hybrid.checkpoint.quantization import GPTQ_METHODS, dynamic_rule, quant_method
from gptq_hybrid.doctor.findings import Inspection

SCALES = ("scales", "weight_scale", "weight_scale_inv")
# Two-dimensional weights of embeddings, and of the output head, for which each format has its own rule.
_NOT_LINEAR = ("embed_tokens", "pos_embed", "lm_head")


def is_gptq(inspection: Inspection) -> bool:
    """Whether the config declares GPTQ."""
    return quant_method(inspection.checkpoint.quantization_config) in GPTQ_METHODS


def unread_format(inspection: Inspection) -> bool:
    """Whether the config declares a format that these rules do not look into."""
    config = inspection.checkpoint.quantization_config
    return config is not None and formats.declared_format(config) is None


def linears(inspection: Inspection) -> Iterator[tuple[LinearSpec, Stored]]:
    """Yield the linears this family quantizes, with how each is stored; absent ones are left out."""
    for linear in inspection.layout.quantized:
        stored = formats.stored(inspection.checkpoint.loaded, linear.name)
        if stored is not None:
            yield linear, stored


def unquantized_linears(inspection: Inspection) -> Iterator[LinearSpec]:
    """Yield the linears of text and vision that this family keeps in BF16; vLLM looks them up in the config too."""
    for spec in (*inspection.layout.plain, *inspection.layout.vision):
        module = module_name(spec)
        if len(spec.shape) == 2 and module != spec.name and not module.endswith(_NOT_LINEAR):
            yield LinearSpec(module, *spec.shape)


def quantized_output_head(inspection: Inspection) -> tuple[LinearSpec, Stored] | None:
    """Return ``lm_head`` where it is stored quantized."""
    head = inspection.layout.output_head
    stored = None if head is None else formats.stored(inspection.checkpoint.loaded, head.name)
    return (head, stored) if head is not None and stored is not None and stored.quantized else None


def module_name(spec: TensorSpec) -> str:
    """Return the name of the module that a weight belongs to."""
    return spec.name.removesuffix(".weight")


def describe(stored: Stored) -> str:
    """Say how a linear is stored, in words that compare: format, bits and group count, as its shapes tell them."""
    scales = next((stored.parts[suffix] for suffix in SCALES if suffix in stored.parts), None)
    packed = next(
        (stored.parts[suffix] for suffix in ("qweight", "weight_packed") if suffix in stored.parts), None
    )
    if scales is None or packed is None or len(scales.shape) != 2 or len(packed.shape) != 2:
        return stored.form
    along = 1 if stored.form == "pack-quantized" else 0
    return f"{stored.form} with {packed.shape[along]} packed rows in {scales.shape[along]} groups"


def lookup_names(inspection: Inspection, module: str) -> tuple[str, ...]:
    """Return the names under which vLLM looks a module up in ``dynamic``: fused where it loads it so."""
    if module == "lm_head":
        # The target's head lies below its language model, the draft's does not.
        both = ("language_model.lm_head", "lm_head")
        return both if inspection.checkpoint.multimodal else ("lm_head",)
    return (module_of(module).name,)


def declared_settings(config: Mapping[str, Any], name: str) -> str:
    """Say what a GPTQ config has a module called ``name`` stored as, in words that compare."""
    rule = dynamic_rule(config, name)
    if rule is False:
        return "left in BF16"
    bits, group_size = overridden(config, rule)
    return f"{bits} bits in groups of {group_size}"
