"""Rules: is every module whole and in shape, and nothing quantized that must not be?"""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from gptq_hybrid.checkpoint import LinearSpec, formats
from gptq_hybrid.checkpoint.formats import Stored
from gptq_hybrid.checkpoint.headers import TensorInfo
from gptq_hybrid.doctor.findings import Fault, Inspection, Severity, rule, some

from .linears import linears, unquantized_linears, unread_format
from .modules import Construction, misplaced, of_body, output_heads, unaligned

_REQUANTIZE = "Quantize again: qwen36 quantize ORIGINAL TARGET"
_REFETCH = "Fetch the checkpoint again, or quantize again: qwen36 quantize ORIGINAL TARGET"
# The suffixes that mark a quantized linear; its other tensors come with one of these.
_PACKED = (".qweight", ".weight_packed", ".weight_scale", ".weight_scale_inv")


def _packed(inspection: Inspection) -> Iterator[tuple[Construction, LinearSpec, Stored]]:
    """Yield the linears that are stored packed and may be, with what vLLM builds for them."""
    for owner in (*of_body(inspection), *output_heads(inspection)):
        for linear, stored in owner.parts:
            if stored.quantized:
                yield owner, linear, stored


@rule(
    "weights-missing",
    scope="quantized",
    explanation="vLLM does not notice missing tensors of a quantized model: it runs on uninitialised memory.",
    remedy=_REFETCH,
)
def missing(inspection: Inspection) -> Iterator[Fault]:
    loaded, stray = inspection.checkpoint.loaded, inspection.checkpoint.stray
    absent = [spec.name for spec in inspection.layout.plain if not _exists(loaded, spec.name)]
    absent += [
        linear.weight.name
        for linear in inspection.layout.quantized
        if not _exists(loaded, linear.weight.name)
    ]
    if unread_format(inspection):  # in whatever tensors the format has
        owners = {name.rpartition(".")[0] for name in loaded}
        absent = [name for name in absent if name.removesuffix(".weight") not in owners]
    unindexed = [name for name in absent if _exists(stray, name)]
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
        total = len(inspection.layout.plain) + len(inspection.layout.quantized)
        yield Fault(f"{len(gone)} of {total} tensors are in no file: {some(gone)}", tensor=gone[0])


def _exists(tensors: dict[str, TensorInfo], name: str) -> bool:
    """Whether a weight is there, plain or quantized."""
    return name in tensors or bool(_parts(tensors, name))


def _parts(tensors: dict[str, TensorInfo], name: str) -> Iterable[TensorInfo]:
    stored = formats.stored(tensors, name.removesuffix(".weight")) if name.endswith(".weight") else None
    return stored.parts.values() if stored else ([tensors[name]] if name in tensors else ())


@rule(
    "quantized-parts",
    scope="quantized",
    explanation="A quantized linear is several tensors; without one of them the others mean nothing.",
    remedy=_REFETCH,
)
def parts(inspection: Inspection) -> Iterator[Fault]:
    """Find modules that have some of their tensors, but not all."""
    config = inspection.checkpoint.quantization_config
    declared = formats.declared_format(config)
    if config is None or declared is None:
        return
    loaded = inspection.checkpoint.loaded
    for owner in (*of_body(inspection), *output_heads(inspection)):
        for linear in owner.linears:
            present = [s for s in declared.suffixes if s != "weight" and f"{linear.name}.{s}" in loaded]
            expected = declared.expected(config, linear, owner.module)
            if not present or expected is None:
                continue
            if extra := misplaced(inspection, linear, expected):
                yield Fault(f"{extra} is stored, but the config has no zero points", tensor=extra)
            absent = [suffix for suffix in expected if f"{linear.name}.{suffix}" not in loaded]
            if absent:
                harmless = declared.unread.issuperset(absent) and not config.get("desc_act")
                yield Fault(
                    f"{linear.name} has {', '.join(present)}, but no {', '.join(absent)}",
                    tensor=f"{linear.name}.{absent[0]}",
                    severity=Severity.WARNING if harmless else None,
                )


@rule(
    "quantized-shape",
    scope="quantized",
    explanation="Shapes follow from bits, group size and the model's dimensions.",
    remedy=_REQUANTIZE,
)
def shapes(inspection: Inspection) -> Iterator[Fault]:
    config = inspection.checkpoint.quantization_config
    declared = formats.declared_format(config)
    if config is None or declared is None:
        return
    for owner, linear, _ in _packed(inspection):
        expected = declared.expected(config, linear, owner.module)
        for suffix, (dtypes, shape) in (expected or {}).items():
            info = inspection.checkpoint.loaded.get(f"{linear.name}.{suffix}")
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
    explanation="vLLM has packed forms of linears and of the output head; all else it builds plain.",
    remedy=_REQUANTIZE,
)
def extra(inspection: Inspection) -> Iterator[Fault]:
    if unread_format(inspection):
        return
    buildable = {linear.name for linear in inspection.layout.quantized}
    buildable |= {linear.name for linear in unquantized_linears(inspection)}
    buildable |= {"lm_head"} | {name.removesuffix(".weight") for name in inspection.mtp_names}
    for name, info in inspection.checkpoint.loaded.items():
        if name.startswith("mtp.") and not inspection.drafting:
            continue  # the target skips these, and there is no draft
        if name.startswith("language_model.mtp."):
            continue  # no place for a head: `mtp-elsewhere` says so, and without MTP vLLM drops it
        suffix = next((s for s in _PACKED if name.endswith(s)), None)
        if suffix and (module := name.removesuffix(suffix)) not in buildable:
            yield Fault(f"{module} is quantized, but vLLM builds it plain", tensor=name, file=info.file)


@rule(
    "plain-shape",
    scope="quantized",
    explanation="config.json and weights must belong to the same model.",
    remedy="Take config.json and weights from the same checkpoint.",
)
def plain_shape(inspection: Inspection) -> Iterator[Fault]:
    loaded = inspection.checkpoint.loaded
    dense = [linear.weight for linear, stored in linears(inspection) if not stored.quantized]
    for spec in (*inspection.layout.plain, *inspection.layout.vision, *dense):
        info = loaded.get(spec.name)
        if info is not None and info.dtype not in formats.FLOAT_DTYPES and unread_format(inspection):
            continue
        if info is not None and info.shape != spec.shape:
            yield Fault(
                f"{spec.name} is {list(info.shape)}; config.json calls for {list(spec.shape)}",
                tensor=spec.name,
                file=info.file,
            )


@rule(
    "plain-dtype",
    scope="quantized",
    explanation="An unquantized tensor must be floating point; vLLM casts anything else as it is.",
    remedy=_REFETCH,
)
def plain_dtype(inspection: Inspection) -> Iterator[Fault]:
    if unread_format(inspection):
        return
    loaded = inspection.checkpoint.loaded
    dense = [linear.weight for linear, stored in linears(inspection) if not stored.quantized]
    for spec in (*inspection.layout.plain, *inspection.layout.vision, *dense):
        stored = formats.stored(loaded, spec.name.removesuffix(".weight"))
        info = loaded.get(spec.name)
        if info is not None and info.dtype not in formats.FLOAT_DTYPES and not (stored and stored.quantized):
            yield Fault(
                f"{spec.name} is stored as {info.dtype} without scales", tensor=spec.name, file=info.file
            )


@rule(
    "quantized-fused",
    scope="quantized",
    explanation="vLLM loads q/k/v, gate/up and in_proj_qkv/z as one parameter each, with one format and grouping.",
    remedy=_REQUANTIZE,
)
def fused(inspection: Inspection) -> Iterator[Fault]:
    for owner in of_body(inspection):
        if each := owner.unlike or unaligned(inspection, owner):
            yield Fault(
                f"vLLM loads {owner.module.name} as one, but its parts are stored as {each}",
                tensor=owner.parts[0][0].name,
            )


WEIGHT_RULES = (
    missing,
    parts,
    shapes,
    extra,
    plain_shape,
    plain_dtype,
    fused,
)
