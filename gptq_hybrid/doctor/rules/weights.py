"""Is every module whole and in shape, and nothing quantized that must not be?"""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from gptq_hybrid.checkpoint import LinearSpec, formats
from gptq_hybrid.checkpoint.headers import TensorInfo
from gptq_hybrid.doctor.findings import Fault, Inspection, Severity, rule, some

from .linears import SCALES, is_gptq, kind, linears, output_head
from .values import has_non_finite, samples

_REQUANTIZE = "Quantize again: qwen36 quantize ORIGINAL TARGET"
_REFETCH = "Fetch the checkpoint again, or quantize again: qwen36 quantize ORIGINAL TARGET"
# Marks of a quantized linear, by suffix; the rest of its tensors hang on one of these.
_PACKED = (".qweight", ".weight_packed")
_MOSTSCALES_FAR = 8


def _wanted(see: Inspection) -> list[LinearSpec]:
    """The linears that may be quantized: this family's, and the output head where it is."""
    head = output_head(see)
    return [*see.layout.quantized, *([head[0]] if head else [])]


@rule(
    "weights-missing",
    scope="quantized",
    explanation="vLLM does not miss a tensor of a quantized model aloud: the module keeps uninitialised memory.",
    remedy=_REFETCH,
)
def missing(see: Inspection) -> Iterator[Fault]:
    loaded, stray = see.checkpoint.loaded, see.checkpoint.stray
    absent = [spec.name for spec in see.layout.plain if not _there(loaded, spec.name)]
    absent += [
        linear.weight.name for linear in see.layout.quantized if not _there(loaded, linear.weight.name)
    ]
    unindexed = [name for name in absent if _there(stray, name)]
    gone = [name for name in absent if name not in set(unindexed)]
    if unindexed:
        files = sorted({i.file for n in unindexed for i in _parts(stray, n)})
        yield Fault(
            f"{len(unindexed)} tensors lie in files the index does not name ({some(files)}): {some(unindexed)}",
            tensor=unindexed[0],
            file=files[0],
            remedy="Rebuild the index from the files: qwen36 repair {path}",
        )
    if gone:
        total = len(see.layout.plain) + len(see.layout.quantized)
        yield Fault(f"{len(gone)} of {total} tensors are in no file: {some(gone)}", tensor=gone[0])


def _there(tensors: dict[str, TensorInfo], name: str) -> bool:
    return name in tensors or bool(_parts(tensors, name))


def _parts(tensors: dict[str, TensorInfo], name: str) -> Iterable[TensorInfo]:
    found = formats.stored(tensors, name.removesuffix(".weight")) if name.endswith(".weight") else None
    return found.parts.values() if found else ([tensors[name]] if name in tensors else ())


@rule(
    "quantized-parts",
    scope="quantized",
    explanation="A quantized linear is several tensors; without one of them the numbers mean nothing.",
    remedy=_REFETCH,
)
def parts(see: Inspection) -> Iterator[Fault]:
    """Modules of which some tensors are there, but not all."""
    config = see.checkpoint.quantization_config
    known = formats.format_of(config)
    if config is None or known is None:
        return
    loaded = see.checkpoint.loaded
    for linear in _wanted(see):
        have = [s for s in known.suffixes if s != "weight" and f"{linear.name}.{s}" in loaded]
        wanted = known.expected(config, linear)
        if not have or wanted is None:
            continue
        lacking = [suffix for suffix in wanted if f"{linear.name}.{suffix}" not in loaded]
        if lacking:
            # From vLLM 0.30 on g_idx is dropped unread, before it is ignored unless desc_act is true.
            harmless = lacking == ["g_idx"] and not config.get("desc_act")
            yield Fault(
                f"{linear.name} has {', '.join(have)}, but no {', '.join(lacking)}",
                tensor=f"{linear.name}.{lacking[0]}",
                severity=Severity.WARNING if harmless else None,
            )


@rule(
    "quantized-shape",
    scope="quantized",
    explanation="Shapes follow from bits, group size and the model's dimensions.",
    remedy=_REQUANTIZE,
)
def shapes(see: Inspection) -> Iterator[Fault]:
    config = see.checkpoint.quantization_config
    known = formats.format_of(config)
    if config is None or known is None:
        return
    for linear in _wanted(see):
        found = formats.stored(see.checkpoint.loaded, linear.name)
        wanted = known.expected(config, linear) if found and found.quantized else None
        for suffix, (dtypes, shape) in (wanted or {}).items():
            info = see.checkpoint.loaded.get(f"{linear.name}.{suffix}")
            if info is not None and (info.shape != shape or info.dtype not in dtypes):
                yield Fault(
                    f"{info.name} is {info.dtype} {list(info.shape)}; the config calls for "
                    f"{'/'.join(sorted(dtypes))} {list(shape)}",
                    tensor=info.name,
                    file=info.file,
                )


@rule(
    "quantized-extra",
    scope="quantized",
    explanation="This family keeps the vision tower and the small Gated-DeltaNet projections in BF16.",
    remedy=_REQUANTIZE,
)
def extra(see: Inspection) -> Iterator[Fault]:
    wanted = {linear.name for linear in see.layout.quantized}
    # lm-head-quantized looks at what a GPTQ config says of the output head.
    if is_gptq(see) or (see.checkpoint.quantization_config or {}).get("lm_head"):
        wanted.add("lm_head")
    wanted |= {name.removesuffix(".weight") for name in see.mtp_names}
    for name, info in see.checkpoint.loaded.items():
        suffix = next((s for s in _PACKED if name.endswith(s)), None)
        module = name.removesuffix(suffix) if suffix else ""
        if suffix and module not in wanted:
            known = formats.format_of(see.checkpoint.quantization_config)
            elsewhere = known is not None and known.name != "GPTQ"
            yield Fault(
                f"{module} is quantized; this family keeps it in BF16",
                tensor=name,
                file=info.file,
                severity=Severity.WARNING if elsewhere else None,
            )


@rule(
    "plain-shape",
    scope="quantized",
    explanation="config.json and weights must belong to the same model.",
    remedy="Take config.json and weights from the same checkpoint.",
)
def plain_shape(see: Inspection) -> Iterator[Fault]:
    loaded = see.checkpoint.loaded
    dense = [linear.weight for linear, found in linears(see) if not found.quantized]
    for spec in (*see.layout.plain, *see.layout.vision, *dense):
        info = loaded.get(spec.name)
        if info is not None and info.shape != spec.shape:
            yield Fault(
                f"{spec.name} is {list(info.shape)}; config.json calls for {list(spec.shape)}",
                tensor=spec.name,
                file=info.file,
            )


@rule(
    "plain-dtype",
    scope="quantized",
    explanation="What is not quantized must be floating point; vLLM casts anything else as it is.",
    remedy=_REFETCH,
)
def plain_dtype(see: Inspection) -> Iterator[Fault]:
    loaded = see.checkpoint.loaded
    dense = [linear.weight for linear, found in linears(see) if not found.quantized]
    for spec in (*see.layout.plain, *see.layout.vision, *dense):
        found = formats.stored(loaded, spec.name.removesuffix(".weight"))
        info = loaded.get(spec.name)
        if info is not None and info.dtype not in formats.FLOAT_DTYPES and not (found and found.quantized):
            yield Fault(
                f"{spec.name} is stored as {info.dtype} without scales", tensor=spec.name, file=info.file
            )


@rule(
    "quantized-fused",
    scope="quantized",
    explanation="vLLM loads q/k/v, gate/up and in_proj_qkv/z as one parameter each, of one format and grouping.",
    remedy=_REQUANTIZE,
)
def fused(see: Inspection) -> Iterator[Fault]:
    found = {linear.name: form for linear, form in linears(see)}
    for module in see.layout.fused:
        kinds = {shard: kind(found[shard]) for shard in module.shards if shard in found}
        if len(set(kinds.values())) > 1:
            each = ", ".join(f"{shard.rpartition('.')[2]} {kind}" for shard, kind in kinds.items())
            yield Fault(
                f"vLLM loads {module.name} as one, but its parts differ: {each}", tensor=module.shards[0]
            )


@rule(
    "scales-values",
    scope="quantized",
    explanation="One NaN or infinite scale turns every output of its layer into NaN.",
    remedy=_REFETCH,
)
def scales(see: Inspection) -> Iterator[Fault]:
    """Samples: one of each linear's scales on a disk, a few in all over a network."""
    head = output_head(see)
    infos = [
        info
        for _, found in (*linears(see), *([head] if head else []))
        for suffix in SCALES
        if (info := found.parts.get(suffix)) is not None
        and info.dtype in formats.FLOAT_DTYPES
        and info.nbytes
    ]
    if see.checkpoint.files.far:
        infos = infos[:: max(1, len(infos) // _MOSTSCALES_FAR)][:_MOSTSCALES_FAR]
    for info, data in zip(infos, samples(see.checkpoint, infos, count=1), strict=True):
        what = "holds NaN or infinite values" if has_non_finite(info.dtype, data) else None
        if what is None and not any(data):
            what = "holds only zeros, as far as sampled"
        if what:
            yield Fault(f"{info.name} in {info.file} {what}", tensor=info.name, file=info.file)


QUANTIZED_RULES = (
    missing,
    parts,
    shapes,
    extra,
    plain_shape,
    plain_dtype,
    fused,
    scales,
)
