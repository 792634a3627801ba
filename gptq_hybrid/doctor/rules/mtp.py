"""Is the whole MTP head there, where a loader will find it, in a shape and form it can use?"""

from __future__ import annotations

from collections.abc import Iterator

from gptq_hybrid.checkpoint import INDEX_NAME, TensorSpec, formats
from gptq_hybrid.checkpoint.formats import Stored
from gptq_hybrid.checkpoint.headers import TensorInfo
from gptq_hybrid.doctor.findings import Fault, Inspection, rule, some

from .linears import module_of
from .values import all_alike, all_zero, has_non_finite, samples

FLOAT_DTYPES = formats.FLOAT_DTYPES
_GET_WHOLE = "Fetch it again from where it came from, or graft the head of the unquantized original"
GRAFT = f"{_GET_WHOLE}: qwen36 repair {{path}} --mtp-from ORIGINAL"


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
    remedy=GRAFT,
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
    remedy=f"The head belongs to another model. {GRAFT}",
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
    "mtp-values",
    scope="mtp",
    explanation="A head of zeros or NaN drafts nothing, and stock vLLM serves on without a word.",
    remedy=GRAFT,
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


MTP_RULES = (configured, unindexed, missing, shapes, dtypes, values)
