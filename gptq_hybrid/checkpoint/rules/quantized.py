"""Is every module stored as the config says, whole, in shape, and nothing quantized that must not be?"""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from gptq_hybrid.checkpoint import formats
from gptq_hybrid.checkpoint._json import fetch_json_object
from gptq_hybrid.checkpoint._safetensors import TensorInfo
from gptq_hybrid.checkpoint.errors import CheckpointError, TransferError
from gptq_hybrid.checkpoint.findings import Fault, Inspection, Severity, rule, some
from gptq_hybrid.checkpoint.formats import Stored
from gptq_hybrid.checkpoint.layout import LinearSpec
from gptq_hybrid.checkpoint.quantization import GPTQ_METHODS, method_of

from ._values import has_non_finite, samples

_REQUANTIZE = "Quantize again: qwen36 quantize ORIGINAL TARGET"
_REFETCH = "Fetch the checkpoint again, or quantize again: qwen36 quantize ORIGINAL TARGET"
# What gptqmodel's and vLLM's kernels take.
_BITS, _GROUPS = (4, 8), (-1, 32, 64, 128)
# Marks of a quantized linear, by suffix; the rest of its tensors hang on one of these.
_PACKED = (".qweight", ".weight_packed")
_SCALES = ("scales", "weight_scale", "weight_scale_inv")
_MOST_SCALES_FAR = 8
# Two-dimensional weights of embeddings, and of the output head, about which each format has its own rule.
_NOT_LINEAR = ("embed_tokens", "pos_embed", "lm_head")
_AUTO_ROUND_PACKINGS = (
    "auto_round:auto_gptq",
    "auto_round:auto_awq",
    "auto_round:fp8",
    "auto_round:llm_compressor",
)


def linears(see: Inspection) -> Iterator[tuple[LinearSpec, Stored]]:
    """The linears this family quantizes, with how each is stored; absent ones left out."""
    for linear in see.layout.quantized:
        found = formats.stored(see.checkpoint.loaded, linear.name)
        if found is not None:
            yield linear, found


def _others(see: Inspection) -> Iterator[tuple[LinearSpec, Stored]]:
    """The linears this family keeps in BF16, in text and vision; vLLM asks the config about these as well."""
    for spec in (*see.layout.plain, *see.layout.vision):
        module = spec.name.removesuffix(".weight")
        if len(spec.shape) != 2 or module == spec.name or module.endswith(_NOT_LINEAR):
            continue
        found = formats.stored(see.checkpoint.loaded, module)
        if found is not None:
            yield LinearSpec(module, *spec.shape), found


def _gptq(see: Inspection) -> bool:
    return method_of(see.checkpoint.quantization_config) in GPTQ_METHODS


@rule(
    "quantization-undeclared",
    scope="quantized",
    explanation="Without quantization_config in config.json vLLM looks for plain weights and finds none.",
    remedy="Put the quantization_config back into config.json; quantize_config.json may hold a copy.",
)
def undeclared(see: Inspection) -> Iterator[Fault]:
    if see.checkpoint.quantization_config is None:
        packed = [linear.name for linear, found in linears(see) if found.quantized]
        if packed:
            yield Fault(
                f"{len(packed)} modules are quantized, but config.json has no quantization_config",
                tensor=packed[0],
                file="config.json",
            )


@rule(
    "quantization-unknown",
    scope="quantized",
    severity=Severity.WARNING,
    explanation="Only the formats this project knows are looked into.",
    remedy="Nothing to do, if the method is one that vLLM knows.",
)
def unknown_method(see: Inspection) -> Iterator[Fault]:
    config = see.checkpoint.quantization_config
    if config is not None and formats.format_of(config) is None:
        yield Fault(f"quant_method {config.get('quant_method')!r} is not looked into", file="config.json")


@rule(
    "quantization-settings",
    scope="quantized",
    explanation="vLLM's GPTQ kernels take 4 or 8 bits, symmetric, in groups of 32, 64, 128 or whole columns.",
    remedy=_REQUANTIZE,
)
def settings(see: Inspection) -> Iterator[Fault]:
    config = see.checkpoint.quantization_config
    packing = None if config is None else config.get("packing_format")
    if formats.format_of(config) is formats.AUTO_ROUND and packing and packing not in _AUTO_ROUND_PACKINGS:
        yield Fault(f"packing_format {packing!r} is not one that vLLM loads", file="config.json")
    if config is None or not _gptq(see):
        return
    for key in ("bits", "group_size", "desc_act", "sym"):
        if key not in config:
            yield Fault(f"quantization_config lacks `{key}`, which vLLM requires", file="config.json")
    bits, group, sym = config.get("bits", 4), config.get("group_size", 128), config.get("sym", True)
    if bits not in _BITS or group not in _GROUPS or sym is not True:
        yield Fault(f"bits={bits!r}, group_size={group!r}, sym={sym!r} cannot be served", file="config.json")
    if (found := config.get("checkpoint_format", "gptq")) not in ("gptq", "gptq_v2"):
        yield Fault(f"checkpoint_format {found!r} is not one that vLLM loads", file="config.json")
    dynamic = config.get("dynamic")
    if dynamic is not None and not isinstance(dynamic, dict):
        yield Fault("quantization_config.dynamic is not an object of rules", file="config.json")


@rule(
    "quantization-copies",
    scope="quantized",
    severity=Severity.WARNING,
    explanation="vLLM reads config.json, gptqmodel quantize_config.json: they must say the same.",
    remedy="Make quantize_config.json a copy of config.json's quantization_config.",
)
def copies(see: Inspection) -> Iterator[Fault]:
    config, name = see.checkpoint.quantization_config, "quantize_config.json"
    if config is None or not _gptq(see) or not see.checkpoint.has(name):
        return
    try:
        copy = fetch_json_object(see.checkpoint.files, name)
    except TransferError:
        raise
    except CheckpointError as error:
        yield Fault(error.message, file=name)
        return
    differ = [k for k in ("bits", "group_size", "sym", "desc_act", "dynamic") if copy.get(k) != config.get(k)]
    if differ:
        yield Fault(f"{name} and config.json differ in {', '.join(differ)}", file=name)


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
    for linear in see.layout.quantized:
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
    head = [LinearSpec(s.name.removesuffix(".weight"), *s.shape) for s in see.layout.mtp if len(s.shape) == 2]
    for linear in (*see.layout.quantized, *head):
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
    "quantized-mismatch",
    scope="quantized",
    explanation="vLLM builds each module as quantization_config says; stored otherwise, it has nowhere to go.",
    remedy="Correct quantization_config in config.json, or quantize again.",
)
def mismatch(see: Inspection) -> Iterator[Fault]:
    config = see.checkpoint.quantization_config
    known = formats.format_of(config)
    if config is None or known is None:
        return
    states = [
        (linear.name, found.quantized, known.declares(config, linear.name))
        for linear, found in (*linears(see), *_others(see))
    ]
    packed = [name for name, quantized, declared in states if quantized and declared is False]
    dense = [name for name, quantized, declared in states if not quantized and declared is True]
    if packed:
        yield Fault(
            f"{len(packed)} modules are stored quantized, but the config leaves them unquantized: {some(packed)}",
            tensor=packed[0],
            file="config.json",
        )
    if dense:
        yield Fault(
            f"{len(dense)} modules are stored unquantized, but the config calls for {known.name}: {some(dense)}",
            tensor=dense[0],
            file="config.json",
        )
    alien = [(n.name, f.form) for n, f in linears(see) if f.quantized and f.form not in known.forms]
    if alien:
        yield Fault(
            f"{len(alien)} modules are stored as {alien[0][1]}, but the config says {known.name}: "
            + some(name for name, _ in alien),
            tensor=alien[0][0],
            file="config.json",
        )
    if any(linears(see)) and not any(quantized for _, quantized, _ in states):
        yield Fault(f"the config says {known.name}, but no module is quantized", file="config.json")


@rule(
    "quantized-dense",
    scope="quantized",
    severity=Severity.WARNING,
    explanation="Left in BF16, a module takes four times the memory; vLLM serves it as it is.",
    remedy="Fine if it was meant so.",
)
def left_dense(see: Inspection) -> Iterator[Fault]:
    config = see.checkpoint.quantization_config
    known = formats.format_of(config)
    if config is None or known is None:
        return
    states = list(linears(see))
    dense = [n.name for n, f in states if not f.quantized and known.declares(config, n.name) is None]
    if dense and len(dense) < len(states):
        yield Fault(f"{len(dense)} of {len(states)} modules are left in BF16: {some(dense)}", tensor=dense[0])


@rule(
    "quantized-extra",
    scope="quantized",
    explanation="This family keeps the vision tower and the small Gated-DeltaNet projections in BF16.",
    remedy=_REQUANTIZE,
)
def extra(see: Inspection) -> Iterator[Fault]:
    wanted = {linear.name for linear in see.layout.quantized}
    wanted |= {name.removesuffix(".weight") for name in see.mtp_names}
    for name, info in see.checkpoint.loaded.items():
        suffix = next((s for s in _PACKED if name.endswith(s)), None)
        module = name.removesuffix(suffix) if suffix else ""
        if suffix and module not in wanted:
            # vLLM takes a quantized lm_head where the config says so.
            declared = module == "lm_head" and bool((see.checkpoint.quantization_config or {}).get("lm_head"))
            known = formats.format_of(see.checkpoint.quantization_config)
            elsewhere = known is not None and known.name != "GPTQ"
            if not declared:
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
        kinds = {shard: _kind(found[shard]) for shard in module.shards if shard in found}
        if len(set(kinds.values())) > 1:
            each = ", ".join(f"{shard.rpartition('.')[2]} {kind}" for shard, kind in kinds.items())
            yield Fault(
                f"vLLM loads {module.name} as one, but its parts differ: {each}", tensor=module.shards[0]
            )


def _kind(form: Stored) -> str:
    """Format, bits and group count of a stored linear, as far as its shapes tell."""
    scales = next((form.parts[s] for s in _SCALES if s in form.parts), None)
    packed = next((form.parts[s] for s in ("qweight", "weight_packed") if s in form.parts), None)
    if scales is None or packed is None or len(scales.shape) != 2 or len(packed.shape) != 2:
        return form.form
    along = 1 if form.form == "pack-quantized" else 0
    return f"{form.form} with {packed.shape[along]} packed rows in {scales.shape[along]} groups"


@rule(
    "scales-values",
    scope="quantized",
    explanation="One NaN or infinite scale turns every output of its layer into NaN.",
    remedy=_REFETCH,
)
def scales(see: Inspection) -> Iterator[Fault]:
    """Samples: one of each linear's scales on a disk, a few in all over a network."""
    infos = [
        info
        for _, found in linears(see)
        for suffix in _SCALES
        if (info := found.parts.get(suffix)) is not None
        and info.dtype in formats.FLOAT_DTYPES
        and info.nbytes
    ]
    if see.checkpoint.files.far:
        infos = infos[:: max(1, len(infos) // _MOST_SCALES_FAR)][:_MOST_SCALES_FAR]
    for info, data in zip(infos, samples(see.checkpoint, infos, count=1), strict=True):
        what = "holds NaN or infinite values" if has_non_finite(info.dtype, data) else None
        if what is None and not any(data):
            what = "holds only zeros, as far as sampled"
        if what:
            yield Fault(f"{info.name} in {info.file} {what}", tensor=info.name, file=info.file)


QUANTIZED_RULES = (
    undeclared,
    unknown_method,
    settings,
    copies,
    missing,
    parts,
    shapes,
    mismatch,
    left_dense,
    extra,
    plain_shape,
    plain_dtype,
    fused,
    scales,
)
