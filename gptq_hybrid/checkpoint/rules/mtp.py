"""Is the whole MTP head there, where a loader will find it, in a shape and form it can use?"""

from __future__ import annotations

from collections.abc import Iterator

from gptq_hybrid.checkpoint import formats, vllm_versions
from gptq_hybrid.checkpoint._checkpoint import INDEX_NAME
from gptq_hybrid.checkpoint._safetensors import TensorInfo
from gptq_hybrid.checkpoint.findings import Fault, Inspection, Severity, rule, some
from gptq_hybrid.checkpoint.formats import Stored
from gptq_hybrid.checkpoint.layout import LinearSpec, TensorSpec
from gptq_hybrid.checkpoint.quantization import GPTQ_METHODS, method_of

from ._linears import MTP_FUSED, asked_as, kind, module_of, mtp_linears
from ._values import all_alike, all_zero, has_non_finite, samples

FLOAT_DTYPES = formats.FLOAT_DTYPES
_GET_WHOLE = "Fetch it again from where it came from, or graft the head of the unquantized original"
_GRAFT = f"{_GET_WHOLE}: qwen36 repair {{path}} --mtp-from ORIGINAL"


def stored_as(see: Inspection, spec: TensorSpec) -> Stored | None:
    """How one tensor of the head is stored among what a loader reads."""
    if len(spec.shape) != 2:
        return formats.dense_or_none(see.checkpoint.loaded, module_of(spec))
    return formats.stored(see.checkpoint.loaded, module_of(spec))


def _dense(see: Inspection) -> list[tuple[TensorSpec, TensorInfo]]:
    """The head's tensors that are stored as plain weights."""
    found = [(spec, stored_as(see, spec)) for spec in see.layout.mtp]
    return [(spec, form.parts["weight"]) for spec, form in found if form is not None and not form.quantized]


@rule(
    "mtp-config",
    scope="mtp",
    explanation="Speculative decoding by MTP needs `mtp_num_hidden_layers` in config.json.",
    remedy="This checkpoint was made without an MTP head; serve it without --speculative-config.",
)
def configured(see: Inspection) -> Iterator[Fault]:
    if not see.layout.mtp:
        yield Fault(
            "config.json declares no MTP layers (`mtp_num_hidden_layers` is absent or 0)", file="config.json"
        )


def _missing_by_file(see: Inspection) -> dict[str, list[TensorSpec]]:
    """Tensors of the head no loader finds, by the unindexed file they lie in ("" for nowhere)."""
    by_file: dict[str, list[TensorSpec]] = {}
    for spec in see.layout.mtp:
        if stored_as(see, spec) is None:
            module = module_of(spec)
            strays = formats.stored(see.checkpoint.stray, module)
            file = next(iter(strays.parts.values())).file if strays else ""
            by_file.setdefault(file, []).append(spec)
    return by_file


@rule(
    "mtp-unindexed",
    scope="mtp",
    explanation="vLLM opens only the files that the index names; it serves on without the head and says nothing.",
    remedy="Add them to the index: qwen36 repair {path}",
)
def unindexed(see: Inspection) -> Iterator[Fault]:
    for file, specs in sorted(_missing_by_file(see).items()):
        if file:
            yield Fault(
                f"{len(specs)} of {len(see.layout.mtp)} MTP tensors lie in {file}, which {INDEX_NAME} does not "
                f"name, so no loader opens it: {some(spec.name for spec in specs)}",
                tensor=specs[0].name,
                file=file,
            )


@rule(
    "mtp-missing",
    scope="mtp",
    explanation="vLLM does not check a quantized model for missing tensors: the draft keeps uninitialised memory.",
    remedy=_GRAFT,
)
def missing(see: Inspection) -> Iterator[Fault]:
    specs = _missing_by_file(see).get("", [])
    if specs:
        index = see.checkpoint.index
        yield Fault(
            f"{len(specs)} of {len(see.layout.mtp)} MTP tensors are in no file of the checkpoint: "
            + some(spec.name for spec in specs),
            tensor=specs[0].name,
            file=None if index is None else index.get(specs[0].name, INDEX_NAME),
        )


@rule(
    "mtp-shape",
    scope="mtp",
    explanation="A head of another model: vLLM loads what fits of a wrong shape, or ends in the middle of loading.",
    remedy=f"The head belongs to another model. {_GRAFT}",
)
def shapes(see: Inspection) -> Iterator[Fault]:
    for spec in see.layout.mtp:
        found = stored_as(see, spec)
        weight = found.parts.get("weight") if found else None
        if weight is not None and weight.shape != spec.shape and weight.dtype != "U8":
            yield Fault(
                f"{spec.name} in {weight.file} is {list(weight.shape)}; config.json calls for {list(spec.shape)}",
                tensor=spec.name,
                file=weight.file,
            )


@rule(
    "mtp-dtype",
    scope="mtp",
    explanation="An FP8 or integer weight without its scale is cast to BF16 as it is, which drafts nonsense.",
    remedy=f"{_GET_WHOLE} (BF16): qwen36 repair {{path}} --mtp-from ORIGINAL",
)
def dtypes(see: Inspection) -> Iterator[Fault]:
    for spec, info in _dense(see):
        if info.dtype not in FLOAT_DTYPES:
            yield Fault(
                f"{spec.name} in {info.file} is stored as {info.dtype} without scales; vLLM would cast the raw "
                "values to BF16",
                tensor=spec.name,
                file=info.file,
            )


@rule(
    "mtp-packed",
    scope="mtp",
    explanation="A packed linear is several tensors, of shapes that follow from bits and group size.",
    remedy=f"Quantize again with the recipe it was made with. {_GRAFT}",
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
            remedy=_GRAFT,
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
    remedy=_GRAFT,
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


@rule(
    "mtp-values",
    scope="mtp",
    explanation="A head of zeros or NaN drafts nothing, and stock vLLM serves on without a word.",
    remedy=_GRAFT,
)
def values(see: Inspection) -> Iterator[Fault]:
    """Matrices that are nothing but zeros, and samples that hold NaN or infinity.

    One-dimensional tensors may be zero: the norms of this family scale by 1 + w. Of a quantized linear the
    scales are judged, and packed values, which stand for zero where they are all alike.
    """
    judged: list[tuple[TensorSpec, TensorInfo, bool]] = []
    for spec in see.layout.mtp:
        form = stored_as(see, spec)
        if form is None or (not form.quantized and form.parts["weight"].shape != spec.shape):
            continue
        for suffix in ("weight", "scales", "weight_scale", "weight_scale_inv"):
            info = form.parts.get(suffix)
            if info is not None and info.dtype in FLOAT_DTYPES:
                judged.append((spec, info, len(spec.shape) > 1 and info.nbytes > 0))
        for suffix in ("qweight", "weight_packed"):
            if (info := form.parts.get(suffix)) is not None and info.nbytes:
                judged.append((spec, info, True))
    found = samples(see.checkpoint, [info for _, info, _ in judged])
    for (_, info, matrix), data in zip(judged, found, strict=True):
        if info.dtype not in FLOAT_DTYPES:
            if not all_alike(see.checkpoint, info, data):
                continue
            what = "holds one value over and over"
        elif matrix and all_zero(see.checkpoint, info, data):
            what = "holds only zeros"
        elif has_non_finite(info.dtype, data):
            what = "holds NaN or infinite values"
        else:
            continue
        yield Fault(f"{info.name} in {info.file} {what}", tensor=info.name, file=info.file)


MTP_RULES = (
    configured,
    unindexed,
    missing,
    shapes,
    dtypes,
    packed,
    quantized_consistently,
    fused,
    dynamic_null,
    values,
)
