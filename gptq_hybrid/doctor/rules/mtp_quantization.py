"""Is the MTP head packed as quantization_config says, whole and in shape?"""

from __future__ import annotations

from collections.abc import Iterator

from gptq_hybrid.checkpoint import LinearSpec, formats
from gptq_hybrid.checkpoint.quantization import GPTQ_METHODS, method_of
from gptq_hybrid.doctor import vllm_releases as vllm_versions
from gptq_hybrid.doctor.findings import Fault, Inspection, Severity, rule, some

from .linears import MTP_FUSED, asked_as, kind, module_of, mtp_linears
from .mtp import GRAFT, stored_as


@rule(
    "mtp-packed",
    scope="mtp",
    explanation="A packed linear is several tensors, of shapes that follow from bits and group size.",
    remedy=f"Quantize again with the recipe it was made with. {GRAFT}",
)
def packed(see: Inspection) -> Iterator[Fault]:
    """Packed linears that lack a tensor, or are not of the shape that vLLM makes room for."""
    config = see.checkpoint.quantization_config
    known = formats.format_of(config)
    if config is None or known is None:
        return
    loaded = see.checkpoint.loaded
    for linear in mtp_linears(see):
        found = formats.stored(loaded, linear.name)
        if found is None or not found.quantized or found.form not in known.forms:
            continue
        # Bits and group size as vLLM will find them, under the name it asks for.
        asked = asked_as(see, linear.name)[0] if known is formats.GPTQ else linear.name
        wanted = known.expected(config, LinearSpec(asked, *linear.weight.shape))
        for suffix, (dtypes, shape) in (wanted or {}).items():
            info = loaded.get(f"{linear.name}.{suffix}")
            if info is None:
                # From vLLM 0.30 on g_idx is dropped unread, before it is ignored unless desc_act is true.
                harmless = suffix == "g_idx" and not config.get("desc_act")
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
    explanation="The draft is built as quantization_config says; a head stored otherwise has nowhere to go.",
    remedy="Make config.json say how the head is stored: qwen36 repair {path}",
)
def quantized_consistently(see: Inspection) -> Iterator[Fault]:
    config = see.checkpoint.quantization_config
    known = formats.format_of(config)
    if config is None or known is None:
        if config is None and any((f := stored_as(see, s)) and f.quantized for s in see.layout.mtp):
            yield Fault(
                "the MTP head is quantized, but config.json has no quantization_config", file="config.json"
            )
        return
    alien = [
        (module_of(spec), found.form)
        for spec in see.layout.mtp
        if (found := stored_as(see, spec)) and found.quantized and found.form not in known.forms
    ]
    if alien:
        yield Fault(
            f"{some(name for name, _ in alien)} of the head: stored as {alien[0][1]}, which vLLM does not load "
            f"in a checkpoint of the format {known.name}",
            tensor=f"{alien[0][0]}.weight",
            remedy=GRAFT,
        )
        return
    wrong: dict[bool, list[str]] = {}
    for spec in see.layout.mtp:
        found, declared = stored_as(see, spec), known.declares(config, module_of(spec))
        if len(spec.shape) == 2 and found and declared is not None and declared != found.quantized:
            wrong.setdefault(found.quantized, []).append(module_of(spec))
    for quantized, modules in wrong.items():
        be = "is" if len(modules) == 1 else "are"
        yield Fault(
            f"{some(modules)} {be} stored "
            + (
                "quantized, but quantization_config leaves "
                if quantized
                else "in BF16, but quantization_config has "
            )
            + ("them unquantized" if quantized else f"them as {known.name}"),
            tensor=f"{modules[0]}.weight",
            file="config.json",
        )
    yield from _rule_that_means_all(see, set(wrong.get(True, ())))


def _rule_that_means_all(see: Inspection, reported: set[str]) -> Iterator[Fault]:
    """A ``-:`` rule about a part of the head, which vLLM takes for one about all of its layers."""
    config = see.checkpoint.quantization_config or {}
    since, dynamic = vllm_versions.MTP_RULE_MEANS_ALL, config.get("dynamic")
    if method_of(config) not in GPTQ_METHODS or not isinstance(dynamic, dict):
        return
    if see.vllm is not None and not see.vllm.at_least(since):
        return
    rules = [pattern for pattern in dynamic if pattern.startswith("-:") and "mtp" in pattern]
    layers = [
        module_of(spec)
        for spec in see.layout.mtp
        if spec.name.startswith("mtp.layers.") and (form := stored_as(see, spec)) and form.quantized
    ]
    left = [module for module in layers if module not in reported]
    if rules and left:
        yield Fault(
            f"{some(left)} {'is' if len(left) == 1 else 'are'} stored quantized, but for the rule {rules[0]!r} "
            f"vLLM {since} and later build all layers of the head unquantized",
            tensor=f"{left[0]}.qweight",
            file="config.json",
        )


@rule(
    "mtp-fused",
    scope="mtp",
    explanation="vLLM loads q/k/v and gate/up as one parameter each, which has one format.",
    remedy=GRAFT,
)
def fused(see: Inspection) -> Iterator[Fault]:
    by_parent: dict[str, dict[str, str]] = {}
    for spec in see.layout.mtp:
        if len(spec.shape) == 2 and (found := stored_as(see, spec)):
            parent, _, leaf = module_of(spec).rpartition(".")
            by_parent.setdefault(parent, {})[leaf] = kind(found)
    for parent, forms in by_parent.items():
        for group in MTP_FUSED.values():
            seen = {leaf: forms[leaf] for leaf in group if leaf in forms}
            if len(set(seen.values())) > 1:
                each = ", ".join(f"{leaf} {form}" for leaf, form in seen.items())
                yield Fault(
                    f"{parent}: vLLM loads {', '.join(group)} as one, but they are stored as {each}",
                    tensor=f"{parent}.{group[0]}.weight",
                )


@rule(
    "mtp-dynamic-null",
    scope="mtp",
    explanation=f"From {vllm_versions.NULL_DYNAMIC_BREAKS} on vLLM iterates over `dynamic` to build the draft.",
    remedy="Remove the key from config.json: qwen36 repair {path}",
)
def dynamic_null(see: Inspection) -> Iterator[Fault]:
    config = see.checkpoint.quantization_config
    if config is None or method_of(config) not in GPTQ_METHODS or "dynamic" not in config:
        return
    if config["dynamic"] is None:
        harmless = see.vllm is not None and not see.vllm.at_least(vllm_versions.NULL_DYNAMIC_BREAKS)
        yield Fault(
            "quantization_config.dynamic is null; vLLM 0.27.1 and later crash on it when MTP is on",
            file="config.json",
            severity=Severity.WARNING if harmless else None,
        )


MTP_QUANTIZATION_RULES = (packed, quantized_consistently, fused, dynamic_null)
