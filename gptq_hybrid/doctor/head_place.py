"""Find an MTP head that lies where vLLM's draft does not look: under another prefix, or in a folder below."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from gptq_hybrid.checkpoint import Checkpoint, TensorInfo, TensorLayout, formats

# Longest first: each is what a saver puts before the names of a part of its model.
_PREFIXES = ("model.language_model.mtp.", "language_model.mtp.", "model.mtp.")
_OWN = "mtp."


@dataclass(frozen=True, slots=True)
class Elsewhere:
    """A whole head in another place.

    Attributes:
        place: the prefix of its names, or its file.
        tensors: its tensors as they are stored, by the name they should have.
    """

    place: str
    tensors: Mapping[str, TensorInfo]


def head_elsewhere(checkpoint: Checkpoint, layout: TensorLayout) -> Elsewhere | None:
    """Return the head's place; None for one that lies where it belongs, and where no other place has all of it."""
    loaded = checkpoint.loaded
    proper = {n: i for n, i in loaded.items() if n.startswith(_OWN) and "/" not in i.file}
    if not layout.mtp or proper:
        return None
    places = {
        prefix: {_OWN + n.removeprefix(prefix): i for n, i in loaded.items() if n.startswith(prefix)}
        for prefix in _PREFIXES
    }
    for name, info in loaded.items():
        if name.startswith(_OWN):
            places.setdefault(info.file, {})[name] = info
    if not any(n.startswith(_OWN) for n in (*loaded, *checkpoint.stray)):
        for name, info in checkpoint.below.items():
            if name.startswith(_OWN):
                places.setdefault(info.file, {})[name] = info
    for place, tensors in places.items():
        if all(formats.stored(tensors, spec.name.removesuffix(".weight")) for spec in layout.mtp):
            return Elsewhere(place, tensors)
    return None


def dropped_by_target(name: str, checkpoint: Checkpoint) -> bool:
    """Whether the multimodal class throws a tensor of this name away: inside ``language_model.``, ``mtp.`` is."""
    architectures = checkpoint.config.get("architectures")
    names = architectures if isinstance(architectures, list) else []
    first = next((name for name in names if str(name).startswith("Qwen3_5For")), None)
    return first == "Qwen3_5ForConditionalGeneration" and name.startswith("language_model.mtp.")
