"""Rules: is the MTP head packed as quantization_config says, whole and in shape?"""

from __future__ import annotations

from collections.abc import Iterator

from gptq_hybrid.checkpoint import formats
from gptq_hybrid.checkpoint.quantization import GPTQ_METHODS, quant_method
from gptq_hybrid.doctor import vllm_releases
from gptq_hybrid.doctor.findings import Fault, Inspection, Severity, rule, some

from .linears import module_name
from .modules import misplaced, of_draft, unaligned
from .mtp import GRAFT, stored_as


@rule(
    "mtp-packed",
    scope="mtp",
    explanation="A packed linear is several tensors, whose shapes follow from bits and group size.",
    remedy=f"Quantize again with the recipe it was made with. {GRAFT}",
)
def packed(inspection: Inspection) -> Iterator[Fault]:
    """Find packed linears that lack a tensor, or have another shape than the one vLLM allocates."""
    config = inspection.checkpoint.quantization_config
    declared = formats.declared_format(config)
    if config is None or declared is None:
        return
    loaded = inspection.checkpoint.loaded
    linears = [(module, *part) for module in of_draft(inspection) for part in module.parts]
    for owner, linear, stored in linears:
        if not stored.quantized or stored.form not in declared.forms:
            continue
        expected = declared.expected(config, linear, owner.module) or {}
        if expected and (extra := misplaced(inspection, linear, expected)):
            yield Fault(f"{extra} is stored, but the config has no zero points", tensor=extra)
        for suffix, (dtypes, shape) in expected.items():
            info = loaded.get(f"{linear.name}.{suffix}")
            if info is None:
                harmless = suffix in declared.unread and not config.get("desc_act")
                yield Fault(
                    f"{linear.name} of the head is packed, but has no {suffix}",
                    tensor=f"{linear.name}.{suffix}",
                    severity=Severity.WARNING if harmless else None,
                )
            elif info.shape != shape or info.dtype not in dtypes:
                yield Fault(
                    f"{info.name} in {info.file} is {info.dtype} {list(info.shape)}; the config calls for "
                    f"{'/'.join(sorted(dtypes))} {list(shape)}",
                    tensor=info.name,
                    file=info.file,
                )


@rule(
    "mtp-quantization",
    scope="mtp",
    explanation="vLLM builds the draft as quantization_config says; a head stored otherwise cannot be loaded.",
    remedy="Make config.json say how the head is stored: qwen36 repair {path}",
)
def quantized_consistently(inspection: Inspection) -> Iterator[Fault]:
    config = inspection.checkpoint.quantization_config
    declared = formats.declared_format(config)
    if config is None or declared is None:
        if config is None and any(
            (f := stored_as(inspection, s)) and f.quantized for s in inspection.layout.mtp
        ):
            yield Fault(
                "the MTP head is quantized, but config.json has no quantization_config", file="config.json"
            )
        return
    alien = [
        (module_name(spec), stored.form)
        for spec in inspection.layout.mtp
        if (stored := stored_as(inspection, spec)) and stored.quantized and stored.form not in declared.forms
    ]
    if alien:
        yield Fault(
            f"{some(name for name, _ in alien)} of the head: stored as {alien[0][1]}, which vLLM does not load "
            f"in a checkpoint of the format {declared.name}",
            tensor=f"{alien[0][0]}.weight",
            remedy=GRAFT,
        )
        return
    wrong: dict[bool, list[str]] = {}
    for owner in of_draft(inspection):
        if owner.built.problem:
            yield Fault(owner.built.problem, tensor=owner.module.name, file="config.json")
        elif owner.built.quantized is not None:
            quantized = not owner.built.quantized
            if modules := owner.parts_stored(quantized=quantized):
                wrong.setdefault(quantized, []).extend(modules)
    for quantized, modules in wrong.items():
        actual = "quantized" if quantized else "in BF16"
        config_says = "leaves them unquantized" if quantized else f"has them as {declared.name}"
        yield Fault(
            f"{some(modules)} {'is' if len(modules) == 1 else 'are'} stored {actual}, but quantization_config "
            f"{config_says}",
            tensor=f"{modules[0]}.weight",
            file="config.json",
        )
    yield from _rule_that_means_all(inspection, set(wrong.get(True, ())))


def _rule_that_means_all(inspection: Inspection, reported: set[str]) -> Iterator[Fault]:
    """Find a ``-:`` rule about a part of the head, which vLLM applies to all of its layers."""
    config = inspection.checkpoint.quantization_config or {}
    since, dynamic = vllm_releases.MTP_RULE_MEANS_ALL, config.get("dynamic")
    if quant_method(config) not in GPTQ_METHODS or not isinstance(dynamic, dict):
        return
    if inspection.older_than(since):
        return
    rules = [pattern for pattern in dynamic if pattern.startswith("-:") and "mtp" in pattern]
    layers = [
        module_name(spec)
        for spec in inspection.layout.mtp
        if spec.name.startswith("mtp.layers.")
        and (stored := stored_as(inspection, spec))
        and stored.quantized
    ]
    left = [module for module in layers if module not in reported]
    if rules and left:
        yield Fault(
            f"{some(left)} {'is' if len(left) == 1 else 'are'} stored quantized, but because of the rule "
            f"{rules[0]!r} vLLM {since} and later build all layers of the head unquantized",
            tensor=f"{left[0]}.qweight",
            file="config.json",
        )


@rule(
    "mtp-fused",
    scope="mtp",
    explanation="vLLM loads q/k/v as one parameter and gate/up as one; each has one format.",
    remedy=GRAFT,
)
def fused(inspection: Inspection) -> Iterator[Fault]:
    for owner in of_draft(inspection):
        if each := owner.unlike or unaligned(inspection, owner):
            yield Fault(
                f"vLLM loads {owner.module.name} as one, but its parts are stored as {each}",
                tensor=f"{owner.parts[0][0].name}.weight",
            )


@rule(
    "mtp-dynamic-null",
    scope="mtp",
    explanation=f"From {vllm_releases.NULL_DYNAMIC_BREAKS} on vLLM iterates over `dynamic` to build the draft.",
    remedy="Remove the key from config.json: qwen36 repair {path}",
)
def dynamic_null(inspection: Inspection) -> Iterator[Fault]:
    config = inspection.checkpoint.quantization_config
    if config is None or "dynamic" not in config or quant_method(config) == "modelopt_fp4":
        return  # of that method alone vLLM does not look at the rules
    if config["dynamic"] is None:
        harmless = inspection.older_than(vllm_releases.NULL_DYNAMIC_BREAKS)
        yield Fault(
            "quantization_config.dynamic is null; vLLM 0.27.1 and later crash on it when MTP is on",
            file="config.json",
            severity=Severity.WARNING if harmless else None,
        )


MTP_QUANTIZATION_RULES = (packed, quantized_consistently, fused, dynamic_null)
