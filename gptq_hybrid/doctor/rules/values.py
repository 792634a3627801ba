"""Rules: can the model compute with the values that are stored, and are they those that were published?"""

from __future__ import annotations

from collections.abc import Iterator

from gptq_hybrid.checkpoint.headers import TensorInfo
from gptq_hybrid.doctor.findings import Fault, Inspection, Severity, rule
from gptq_hybrid.doctor.values import Role, role_of, what_is_wrong

from .modules import text_only
from .samples import values

_REFETCH = "Fetch the checkpoint again, or quantize again: qwen36 quantize ORIGINAL TARGET"
# Of these a model survives a matrix of one value: it loses a gate's input, or images.
_SPARED = (".in_proj_a", ".in_proj_b")
_VISION = "model.visual."
# Over a network: scales, and other tensors beside the output head, the embedding and the last norm.
_FAR_SCALES, _FAR_OTHERS = 8, 8
_FAR_FIRST = ("lm_head", "embed_tokens", ".norm")


@rule(
    "scales-values",
    scope="quantized",
    explanation="One NaN or infinite scale turns every output of its layer into NaN.",
    remedy=_REFETCH,
)
def scales(inspection: Inspection) -> Iterator[Fault]:
    """Look at the scales: of every module on a disk, of a few over a network."""
    infos = [info for info, role in _of_body(inspection) if role is Role.SCALES]
    if inspection.checkpoint.files.far and inspection.deep is None:
        infos = _some(infos, _FAR_SCALES)
    yield from _faults(inspection, [(info, Role.SCALES) for info in infos])


@rule(
    "weights-values",
    scope="quantized",
    explanation="vLLM loads any values. One NaN in a norm, an embedding or a matrix makes all logits NaN; a module "
    "of one value answers the same to everything. With NaN logits vLLM even accepts every draft.",
    remedy=_REFETCH,
)
def weights(inspection: Inspection) -> Iterator[Fault]:
    """Look at everything but scales: all of it on a disk, large tensors in pieces."""
    found = [item for item in _of_body(inspection) if item[1] is not Role.SCALES]
    if inspection.checkpoint.files.far and inspection.deep is None:
        first = [
            item for item in found if _module(item[0]).endswith(_FAR_FIRST) and ".layers." not in item[0].name
        ]
        others = [item for item in found if item not in first and not item[0].name.startswith(_VISION)]
        found = first + _some(others, _FAR_OTHERS)
    yield from _faults(inspection, found)


def _some(items: list, count: int) -> list:  # type: ignore[type-arg]
    return items[:: max(1, len(items) // count)][:count]


def _module(info: TensorInfo) -> str:
    return info.name.rpartition(".")[0]


def _of_body(inspection: Inspection) -> list[tuple[TensorInfo, Role]]:
    """Tensors of target and vision tower whose values matter: what vLLM loads of them, and how it is used."""
    return inspection.once("values_of_body", _find_body)


def _find_body(inspection: Inspection) -> list[tuple[TensorInfo, Role]]:
    layout = inspection.layout
    towers = () if text_only(inspection) else layout.vision
    specs = (*layout.plain, *(linear.weight for linear in layout.quantized), *towers)
    modules = {spec.name.rpartition(".")[0] for spec in specs}
    found = []
    for info in inspection.checkpoint.loaded.values():
        module, _, suffix = info.name.rpartition(".")
        if module not in modules or not info.nbytes:
            continue
        role = role_of(module, suffix, info.shape)
        if role is Role.MATRIX or info.dtype[0] in "BF":
            found.append((info, role))
    return found


def _faults(inspection: Inspection, found: list[tuple[TensorInfo, Role]]) -> Iterator[Fault]:
    for (info, role), seen in zip(
        found, values(inspection, [info for info, _ in found], count=1), strict=True
    ):
        what = what_is_wrong(role, seen)
        if what is None:
            continue
        module = _module(info)
        spared = not seen.non_finite and (module.endswith(_SPARED) or module.startswith(_VISION))
        sampled = inspection.checkpoint.files.far and inspection.deep is None and not seen.non_finite
        yield Fault(
            f"{info.name} in {info.file} {what}{', as far as sampled' if sampled else ''}",
            tensor=info.name,
            file=info.file,
            severity=Severity.WARNING if spared else None,
        )


@rule(
    "file-digest",
    scope="files",
    explanation="The hub has a SHA-256 of every large file. `qwen36 check --deep` compares it with what is here.",
    remedy="Download the file again, unless it was changed on purpose.",
)
def digests(inspection: Inspection) -> Iterator[Fault]:
    for name, digest in (inspection.deep.digests if inspection.deep else {}).items():
        published = inspection.checkpoint.files.digest(name)
        if published is not None and published != digest:
            yield Fault(
                f"{name} has the SHA-256 {digest[:16]}…, and on the hub it has {published[:16]}…", file=name
            )


VALUES_RULES = (scales, weights, digests)
