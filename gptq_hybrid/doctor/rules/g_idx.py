"""Read ``g_idx``: which group each input feature of a module belongs to, as far as a check looks."""

from __future__ import annotations

from collections.abc import Iterator

from gptq_hybrid.checkpoint import TensorInfo, formats
from gptq_hybrid.checkpoint.formats.gptq import settings
from gptq_hybrid.checkpoint.g_idx import natural_bytes
from gptq_hybrid.common.errors import BoundsError
from gptq_hybrid.doctor.findings import Inspection

from .linears import lookup_names, quantized_output_head

# Over a network: the first 512 features of the modules of the first layers of each kind. By chance, act order
# leaves those in place about once in 10^200.
_FAR_FEATURES, _FAR_MODULES = 512, 10
# All are held at once.
_MOST_BYTES = 96 << 20


def g_idx(inspection: Inspection) -> dict[str, tuple[TensorInfo, bytes]]:
    """Return each module's ``g_idx`` and its bytes: whole from a disk (9 MiB at 27B), in part over a network."""
    return inspection.once("g_idx", _read_g_idx)


def _read_g_idx(inspection: Inspection) -> dict[str, tuple[TensorInfo, bytes]]:
    head = quantized_output_head(inspection)
    layout, checkpoint = inspection.layout, inspection.checkpoint
    infos = {
        linear.name: info
        for linear in (*layout.quantized, *layout.mtp_linears, *([head[0]] if head else []))
        if (info := checkpoint.loaded.get(f"{linear.name}.g_idx")) is not None
        and info.dtype in formats.WORDS
        and info.shape == (linear.in_features,)
    }
    most = None
    if checkpoint.files.far:
        kinds: dict[str, str] = {}
        for name in infos:
            kinds.setdefault(name.rpartition(".")[2], name)
        infos = {name: infos[name] for name in list(kinds.values())[:_FAR_MODULES]}
        most = _FAR_FEATURES
    parts = []
    for info in infos.values():
        features = info.shape[0] if most is None else min(most, info.shape[0])
        parts.append((info, 0, features * (8 if info.dtype == "I64" else 4)))
    if (size := sum(count for *_, count in parts)) > _MOST_BYTES:
        raise BoundsError(
            f"{checkpoint.location}/config.json",
            f"calls for g_idx of {size >> 20} MiB in all; more than {_MOST_BYTES >> 20} are not read",
        )
    data = checkpoint.read_parts(parts)
    return {name: (info, _as_int32(info, raw)) for (name, info), raw in zip(infos.items(), data, strict=True)}


def _as_int32(info: TensorInfo, raw: bytes) -> bytes:
    """The low words of a ``g_idx`` in int64, as vLLM casts it."""
    if info.dtype != "I64":
        return raw
    whole = memoryview(raw)
    return b"".join(whole[at : at + 4] for at in range(0, len(raw), 8))


def permuted(inspection: Inspection) -> list[str]:
    """Return the modules whose ``g_idx`` is not in natural order, as far as read."""
    return inspection.once("permuted", _find_permuted)


def _find_permuted(inspection: Inspection) -> list[str]:
    config = inspection.checkpoint.quantization_config or {}
    out = []
    for name, (info, raw) in g_idx(inspection).items():
        _, group_size = settings(config, loaded_as(inspection, name))
        if not natural_bytes(info.shape[0], group_size).startswith(raw):
            out.append(name)
    return out


def permuted_tensors(inspection: Inspection) -> dict[str, TensorInfo]:
    """Return the ``g_idx`` that are not in natural order, by module, as far as read."""
    return {name: g_idx(inspection)[name][0] for name in permuted(inspection)}


def loaded_as(inspection: Inspection, module: str) -> str:
    """Return the name of the layer that vLLM loads ``module`` into, fused or alone."""
    return lookup_names(inspection, module)[0]


def order_is_whole(inspection: Inspection) -> bool:
    """Whether every quantized module has a ``g_idx`` as GPTQ with act order leaves it.

    That is: permuted, each group of the right size, and equal in modules that vLLM loads as one. Then the flag
    ``desc_act: true`` is the truth: ``g_idx`` says which scale belongs to which feature, and no tensor looks like
    that by chance.
    """
    if inspection.checkpoint.files.far:
        return False  # only parts were read
    loaded = inspection.checkpoint.loaded
    packed = {name.removesuffix(".qweight") for name in loaded if name.endswith(".qweight")}
    if not packed or packed != set(g_idx(inspection)) or set(permuted(inspection)) != packed:
        return False
    return not any(unequal(inspection)) and not any(misgrouped(inspection, name) for name in packed)


def unequal(inspection: Inspection) -> Iterator[tuple[str, str, list[str]]]:
    """Yield fused layers whose parts differ in ``g_idx``: the layer, its first part, and the parts unlike it."""
    values = g_idx(inspection)
    parts: dict[str, list[str]] = {}
    for name in values:
        parts.setdefault(loaded_as(inspection, name), []).append(name)
    for layer, (first, *others) in parts.items():
        unlike = [name for name in others if values[name][1] != values[first][1]]
        if unlike:
            yield layer, first, unlike


def misgrouped(inspection: Inspection, module: str) -> str | None:
    """Say what is wrong with the groups of a ``g_idx``, as far as read; None if nothing is."""
    # Only permuted modules need it, and importing it takes longer than a whole check.
    import numpy as np

    info, raw = g_idx(inspection)[module]
    values = np.frombuffer(raw[: len(raw) // 4 * 4], dtype="<i4")
    config = inspection.checkpoint.quantization_config or {}
    _, group_size = settings(config, loaded_as(inspection, module))
    size = info.shape[0] if group_size <= 0 else group_size
    groups = -(-info.shape[0] // size)
    low, high = int(values.min()), int(values.max())
    if low < 0 or high >= groups:
        return f"runs from {low} to {high}; there are {groups} groups"
    counts = np.bincount(values, minlength=groups)
    rows = np.minimum(size, info.shape[0] - size * np.arange(groups))
    bad = np.flatnonzero(counts > rows if len(values) < info.shape[0] else counts != rows)
    if not len(bad):
        return None
    return f"puts {counts[bad[0]]} rows into group {bad[0]}, which has {rows[bad[0]]}"
