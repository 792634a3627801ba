"""The linears of a checkpoint with how each is stored, and what vLLM will ask the config about them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from gptq_hybrid.checkpoint import LinearSpec, TensorSpec, formats
from gptq_hybrid.checkpoint.formats import Stored, vllm_name
from gptq_hybrid.checkpoint.formats.gptq import overridden
from gptq_hybrid.checkpoint.quantization import GPTQ_METHODS, dynamic_rule, method_of
from gptq_hybrid.doctor.findings import Inspection

SCALES = ("scales", "weight_scale", "weight_scale_inv")
# Two-dimensional weights of embeddings, and of the output head, about which each format has its own rule.
_NOT_LINEAR = ("embed_tokens", "pos_embed", "lm_head")
# What vLLM's draft loads as one.
MTP_FUSED = {"qkv_proj": ("q_proj", "k_proj", "v_proj"), "gate_up_proj": ("gate_proj", "up_proj")}


def is_gptq(see: Inspection) -> bool:
    """Whether the config says GPTQ."""
    return method_of(see.checkpoint.quantization_config) in GPTQ_METHODS


def linears(see: Inspection) -> Iterator[tuple[LinearSpec, Stored]]:
    """The linears this family quantizes, with how each is stored; absent ones left out."""
    for linear in see.layout.quantized:
        found = formats.stored(see.checkpoint.loaded, linear.name)
        if found is not None:
            yield linear, found


def others(see: Inspection) -> Iterator[tuple[LinearSpec, Stored]]:
    """The linears this family keeps in BF16, in text and vision; vLLM asks the config about these as well."""
    for spec in (*see.layout.plain, *see.layout.vision):
        module = module_of(spec)
        if len(spec.shape) != 2 or module == spec.name or module.endswith(_NOT_LINEAR):
            continue
        found = formats.stored(see.checkpoint.loaded, module)
        if found is not None:
            yield LinearSpec(module, *spec.shape), found


def output_head(see: Inspection) -> tuple[LinearSpec, Stored] | None:
    """``lm_head`` where it is stored quantized."""
    spec = next((spec for spec in see.layout.plain if spec.name == "lm_head.weight"), None)
    found = formats.stored(see.checkpoint.loaded, "lm_head") if spec is not None else None
    if spec is None or found is None or not found.quantized:
        return None
    return LinearSpec("lm_head", *spec.shape), found


def mtp_linears(see: Inspection) -> list[LinearSpec]:
    """The linears of the MTP head, stored or not."""
    return [LinearSpec(module_of(spec), *spec.shape) for spec in see.layout.mtp if len(spec.shape) == 2]


def module_of(spec: TensorSpec) -> str:
    """The name of the module a weight belongs to."""
    return spec.name.removesuffix(".weight")


def kind(form: Stored) -> str:
    """Format, bits and group count of a stored linear, as far as its shapes tell."""
    scales = next((form.parts[s] for s in SCALES if s in form.parts), None)
    packed = next((form.parts[s] for s in ("qweight", "weight_packed") if s in form.parts), None)
    if scales is None or packed is None or len(scales.shape) != 2 or len(packed.shape) != 2:
        return form.form
    along = 1 if form.form == "pack-quantized" else 0
    return f"{form.form} with {packed.shape[along]} packed rows in {scales.shape[along]} groups"


def asked_as(see: Inspection, module: str) -> tuple[str, ...]:
    """The names under which vLLM looks a module up in ``dynamic``: its own, fused where it loads it so."""
    if module == "lm_head":
        # The target's head lies below its language model, the draft's does not.
        multimodal = see.checkpoint.text_config is not see.checkpoint.config
        return ("language_model.lm_head", "lm_head") if multimodal else ("lm_head",)
    if module.startswith("mtp."):
        parent, _, leaf = module.rpartition(".")
        fused = next((name for name, shards in MTP_FUSED.items() if leaf in shards), leaf)
        return (f"{parent}.{fused}",)
    fused_by = see.once("fused_by", lambda s: {shard: f.name for f in s.layout.fused for shard in f.shards})
    return (vllm_name(fused_by.get(module, module)),)


def says(config: Mapping[str, Any], name: str) -> str:
    """What a GPTQ config says of a module called ``name``, in words that compare."""
    rule = dynamic_rule(config, name)
    if rule is False:
        return "left in BF16"
    bits, group_size = overridden(config, rule)
    return f"{bits} bits in groups of {group_size}"
