"""Rules: is the whole MTP head where a loader finds it, in a shape and form it can use?"""

from __future__ import annotations

from collections.abc import Iterator

from gptq_hybrid.checkpoint import INDEX_NAME, TensorSpec, formats
from gptq_hybrid.checkpoint.formats import Stored
from gptq_hybrid.checkpoint.headers import TensorInfo
from gptq_hybrid.doctor.findings import Fault, Inspection, rule, some
from gptq_hybrid.doctor.head_place import Elsewhere, dropped_by_target, head_elsewhere
from gptq_hybrid.doctor.values import Role, role_of, what_is_wrong

from .linears import module_name, unread_format
from .samples import values as observed

_GET_WHOLE = "Fetch it again from where it came from, or graft the head of the unquantized original"
GRAFT = f"{_GET_WHOLE}: qwen36 repair {{path}} --mtp-from ORIGINAL"


_RENAME = "Give it the names it should have: qwen36 repair {path}"


def stored_as(inspection: Inspection, spec: TensorSpec) -> Stored | None:
    """How one tensor of the head is stored in the files a loader reads; None if it is absent."""
    if len(spec.shape) != 2:
        return formats.dense_or_none(inspection.checkpoint.loaded, module_name(spec))
    return formats.stored(inspection.checkpoint.loaded, module_name(spec))


def _dense(inspection: Inspection) -> list[tuple[TensorSpec, TensorInfo]]:
    """The head's tensors that are stored as plain weights."""
    forms = [(spec, stored_as(inspection, spec)) for spec in inspection.layout.mtp]
    return [
        (spec, stored.parts["weight"])
        for spec, stored in forms
        if stored is not None and not stored.quantized
    ]


@rule(
    "mtp-config",
    scope="mtp",
    explanation="vLLM builds one MTP layer where config.json says nothing, and fails on a 0.",
    remedy="This checkpoint was made without an MTP head; serve it without --speculative-config.",
)
def configured(inspection: Inspection) -> Iterator[Fault]:
    if not inspection.layout.mtp:
        yield Fault(
            "config.json declares that there is no MTP head (`mtp_num_hidden_layers` is 0)",
            file="config.json",
        )


def elsewhere(inspection: Inspection) -> Elsewhere | None:
    """Where the whole head lies, if that is not where the draft looks."""
    return inspection.once("head_elsewhere", lambda i: head_elsewhere(i.checkpoint, i.layout))


@rule(
    "mtp-elsewhere",
    scope="mtp",
    explanation="vLLM's draft takes tensors whose names begin with `mtp.`, and skips all others.",
    remedy=_RENAME,
)
def misplaced(inspection: Inspection) -> Iterator[Fault]:
    head = elsewhere(inspection)
    if head is None:
        return
    first = next(iter(head.tensors.values()))
    if inspection.checkpoint.below.get(first.name) is first:
        yield Fault(
            f"the MTP head lies in {first.file} ({len(head.tensors)} tensors), below the checkpoint folder and not "
            "in the index, where no loader looks for it",
            tensor=first.name,
            file=first.file,
            remedy="Move it: qwen36 repair {path}",
        )
    elif head.place.endswith("."):
        yield Fault(
            f"the MTP head lies under {head.place}* in {first.file} ({len(head.tensors)} tensors), where no draft "
            "looks for it",
            tensor=first.name,
            file=first.file,
            remedy=None if _repaired_in_place(inspection, head) else f"{_RENAME} --out DIR",
        )


def _repaired_in_place(inspection: Inspection, head: Elsewhere) -> bool:
    """Whether the tensors may stay where they are: vLLM throws them away, or no other tensor is in their files."""
    stored = {info.name for info in head.tensors.values()}
    headers = inspection.checkpoint.headers
    return all(dropped_by_target(name, inspection.checkpoint) for name in stored) or all(
        headers[info.file].tensors.keys() <= stored for info in head.tensors.values()
    )


def _missing_by_file(inspection: Inspection) -> dict[str, list[TensorSpec]]:
    """Tensors of the head that no loader finds, by the unindexed file that holds them ("" for none)."""
    by_file: dict[str, list[TensorSpec]] = {}
    if elsewhere(inspection) is not None:
        return by_file
    for spec in inspection.layout.mtp:
        if stored_as(inspection, spec) is None:
            module = module_name(spec)
            strays = formats.stored(inspection.checkpoint.stray, module)
            file = next(iter(strays.parts.values())).file if strays else ""
            by_file.setdefault(file, []).append(spec)
    return by_file


@rule(
    "mtp-unindexed",
    scope="mtp",
    explanation="vLLM opens only the files that the index names; it serves without the head and says nothing.",
    remedy="Add them to the index: qwen36 repair {path}",
)
def unindexed(inspection: Inspection) -> Iterator[Fault]:
    for file, specs in sorted(_missing_by_file(inspection).items()):
        if file:
            yield Fault(
                f"{len(specs)} of {len(inspection.layout.mtp)} MTP tensors lie in {file}, which {INDEX_NAME} does "
                f"not name, so no loader opens it: {some(spec.name for spec in specs)}",
                tensor=specs[0].name,
                file=file,
            )


@rule(
    "mtp-missing",
    scope="mtp",
    explanation="vLLM does not notice missing tensors of a quantized model: it drafts from uninitialised memory.",
    remedy=GRAFT,
)
def missing(inspection: Inspection) -> Iterator[Fault]:
    specs = _missing_by_file(inspection).get("", [])
    if unread_format(inspection):  # in whatever tensors the format has
        owners = {name.rpartition(".")[0] for name in inspection.checkpoint.loaded}
        specs = [spec for spec in specs if module_name(spec) not in owners]
    if specs:
        index = inspection.checkpoint.index
        yield Fault(
            f"{len(specs)} of {len(inspection.layout.mtp)} MTP tensors are in no file of the checkpoint: "
            + some(spec.name for spec in specs),
            tensor=specs[0].name,
            file=None if index is None else index.get(specs[0].name, INDEX_NAME),
        )


@rule(
    "mtp-shape",
    scope="mtp",
    explanation="With a wrong shape vLLM loads the part that fits, or fails in the middle of loading.",
    remedy=f"The head belongs to another model. {GRAFT}",
)
def shapes(inspection: Inspection) -> Iterator[Fault]:
    for spec in inspection.layout.mtp:
        stored = stored_as(inspection, spec)
        weight = stored.parts.get("weight") if stored else None
        if weight is not None and weight.shape != spec.shape and weight.dtype != "U8":
            yield Fault(
                f"{spec.name} in {weight.file} is {list(weight.shape)}; config.json calls for {list(spec.shape)}",
                tensor=spec.name,
                file=weight.file,
            )


@rule(
    "mtp-dtype",
    scope="mtp",
    explanation="vLLM casts an FP8 or integer weight without its scale to BF16 as it is, which drafts nonsense.",
    remedy=f"{_GET_WHOLE} (BF16): qwen36 repair {{path}} --mtp-from ORIGINAL",
)
def dtypes(inspection: Inspection) -> Iterator[Fault]:
    if unread_format(inspection):
        return
    for spec, info in _dense(inspection):
        if info.dtype not in formats.FLOAT_DTYPES:
            yield Fault(
                f"{spec.name} in {info.file} is stored as {info.dtype} without scales; vLLM would cast the raw "
                "values to BF16",
                tensor=spec.name,
                file=info.file,
            )


@rule(
    "mtp-values",
    scope="mtp",
    explanation="A head of zeros or NaN drafts nothing usable, and stock vLLM serves with it silently.",
    remedy=GRAFT,
)
def values(inspection: Inspection) -> Iterator[Fault]:
    """Find matrices of one value, scales of zeros, and whatever holds NaN or infinity.

    One-dimensional tensors may be zero: the norms of this family scale by 1 + w.
    """
    candidates: list[tuple[TensorInfo, Role]] = []
    for spec in inspection.layout.mtp:
        stored = stored_as(inspection, spec)
        if stored is None or (not stored.quantized and stored.parts["weight"].shape != spec.shape):
            continue
        for suffix, info in stored.parts.items():
            role = role_of(module_name(spec), suffix, info.shape)
            if info.nbytes and (role is Role.MATRIX or info.dtype[0] in "BF"):
                candidates.append((info, role))
    seen = observed(inspection, [info for info, _ in candidates])
    for (info, role), found in zip(candidates, seen, strict=True):
        if what := what_is_wrong(role, found):
            yield Fault(f"{info.name} in {info.file} {what}", tensor=info.name, file=info.file)


MTP_RULES = (configured, misplaced, unindexed, missing, shapes, dtypes, values)
