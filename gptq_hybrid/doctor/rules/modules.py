"""What vLLM builds under ``quantization_config``, beside what the checkpoint stores for it."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace

from gptq_hybrid.checkpoint import LinearSpec, formats
from gptq_hybrid.checkpoint.formats import Built, Module, Stored, fp8, module_of
from gptq_hybrid.checkpoint.quantization import GPTQ_METHODS, quant_method
from gptq_hybrid.doctor import vllm_releases
from gptq_hybrid.doctor.findings import Inspection

from .linears import describe, unquantized_linears

_TEXT_ONLY = "Qwen3_5ForCausalLM"


@dataclass(frozen=True, slots=True)
class Construction:
    """A module of vLLM: what it builds, and the linears of the checkpoint that go into it.

    Attributes:
        module, built: what vLLM builds.
        linears: what goes into it.
        parts: those that are stored, and how; other rules name the absent ones.
        draft: whether it is the draft's.
    """

    module: Module
    built: Built
    linears: tuple[LinearSpec, ...]
    parts: tuple[tuple[LinearSpec, Stored], ...]
    draft: bool

    def parts_stored(self, *, quantized: bool) -> list[str]:
        """Names of its parts that are stored quantized, or plain."""
        return [linear.name for linear, stored in self.parts if stored.quantized is quantized]

    @property
    def unlike(self) -> str | None:
        """How its parts are stored, where that differs."""
        forms = {linear.name.rpartition(".")[2]: describe(stored) for linear, stored in self.parts}
        return ", ".join(f"{k} {v}" for k, v in forms.items()) if len(set(forms.values())) > 1 else None


def text_only(inspection: Inspection) -> bool:
    """Whether vLLM's class is the text-only one: the first of ``architectures`` that it knows decides."""
    declared = inspection.checkpoint.config.get("architectures")
    names = declared if isinstance(declared, list) else []
    known = [name for name in names if name in inspection.family.architectures]
    return known[0] == _TEXT_ONLY if known else not inspection.checkpoint.multimodal


def construct(
    inspection: Inspection, linears: Iterable[LinearSpec], *, draft: bool | None = None
) -> list[Construction]:
    """Group linears by the module that vLLM loads them into; nothing for a format that is not looked into."""
    config = inspection.checkpoint.quantization_config
    declared = formats.declared_format(config)
    if config is None or declared is None:
        return []
    owners: dict[str, tuple[Module, list[LinearSpec]]] = {}
    for linear in linears:
        module = module_of(linear.name, text_only=text_only(inspection), draft=draft)
        if inspection.older_than(vllm_releases.FUSED_PATTERNS_SINCE):
            module = replace(module, fused_patterns=False)
        owners.setdefault(module.name, (module, []))[1].append(linear)
    out: list[Construction] = []
    for module, group in owners.values():
        forms = [(linear, formats.stored(inspection.checkpoint.loaded, linear.name)) for linear in group]
        parts = tuple((linear, stored) for linear, stored in forms if stored is not None)
        built = declared.builds(config, module)
        if draft and module.name.startswith("mtp.layers.") and _draft_is_plain(inspection):
            built = Built(False)
        out.append(Construction(module, built, tuple(group), parts, bool(draft)))
    return out


def _draft_is_plain(inspection: Inspection) -> bool:
    """Whether vLLM builds the draft's layers unquantized for a rule of ``dynamic``, whatever the method.

    In GPTQ's own configs the rule ``mtp-quantization`` names it.
    """
    config = inspection.checkpoint.quantization_config or {}
    dynamic = config.get("dynamic")
    if quant_method(config) in GPTQ_METHODS or inspection.older_than(vllm_releases.MTP_RULE_MEANS_ALL):
        return False
    patterns = dynamic if isinstance(dynamic, (Mapping, list)) else ()
    return any(isinstance(p, str) and p.startswith("-:") and "mtp" in p for p in patterns)


def of_body(inspection: Inspection) -> list[Construction]:
    """The linears of text and vision, those that this family keeps in BF16 among them."""

    def build(inspection: Inspection) -> list[Construction]:
        plain = list(unquantized_linears(inspection))
        if text_only(inspection):
            tower = {spec.name for spec in inspection.layout.vision}
            plain = [linear for linear in plain if linear.weight.name not in tower]
        return construct(inspection, (*inspection.layout.quantized, *plain))

    return inspection.once("modules_of_body", build)


def of_draft(inspection: Inspection) -> list[Construction]:
    """The linears of the MTP head."""
    return inspection.once("modules_of_draft", lambda i: construct(i, i.layout.mtp_linears, draft=True))


def output_heads(inspection: Inspection) -> list[Construction]:
    """``lm_head`` in the target and, where one drafts, in the draft: vLLM builds both from the same tensors."""
    head = inspection.layout.output_head
    if head is None:
        return []
    target = construct(inspection, [head])
    return target + (construct(inspection, [head], draft=True) if inspection.drafting else [])


def misplaced(inspection: Inspection, linear: LinearSpec, expected: formats.Expected) -> str | None:
    """Return the name of a stored tensor for which vLLM has no place under the module's settings."""
    declared = formats.declared_format(inspection.checkpoint.quantization_config)
    suffixes = declared.misplaced - set(expected) if declared else set()
    names = (f"{linear.name}.{suffix}" for suffix in sorted(suffixes))
    return next((name for name in names if name in inspection.checkpoint.loaded), None)


def unaligned(inspection: Inspection, owner: Construction) -> str | None:
    """Say which part of a fused FP8 module ends within a block of scales, for which vLLM has no place."""
    config = inspection.checkpoint.quantization_config or {}
    block = fp8.block_size(config) if formats.declared_format(config) is formats.FP8 else None
    if block is None:
        return None
    for linear, stored in owner.parts[:-1]:
        if stored.quantized and linear.out_features % block[0]:
            part = linear.name.rpartition(".")[2]
            return f"FP8 in blocks of {block[0]} rows, and {part} has {linear.out_features}"
    return None
