"""Reading ``g_idx``: which group each row of a module belongs to, as far as a check looks."""

from __future__ import annotations

import sys
from array import array
from collections.abc import Iterator
from functools import cache

from gptq_hybrid.checkpoint.formats.gptq import settings
from gptq_hybrid.checkpoint.headers import TensorInfo
from gptq_hybrid.doctor.findings import Inspection

from .linears import asked_as, mtp_linears, output_head

# Over a network, the first 512 rows of the modules of the first layers of each kind: act order that leaves
# them in place would be an accident of about one in 10^200.
_FAR_BYTES, _FAR_MODULES = 2048, 10


def g_idx(see: Inspection) -> dict[str, tuple[TensorInfo, bytes]]:
    """Each module's ``g_idx`` and its bytes: whole from a disk (9 MiB at 27B), pieces over a network."""
    return see.once("g_idx", _read_g_idx)


def _read_g_idx(see: Inspection) -> dict[str, tuple[TensorInfo, bytes]]:
    head = output_head(see)
    infos = {
        linear.name: info
        for linear in (*see.layout.quantized, *mtp_linears(see), *([head[0]] if head else []))
        if (info := see.checkpoint.loaded.get(f"{linear.name}.g_idx")) is not None
        and info.dtype == "I32"
        and info.shape == (linear.in_features,)
    }
    count = None
    if see.checkpoint.files.far:
        kinds: dict[str, str] = {}
        for name in infos:
            kinds.setdefault(name.rpartition(".")[2], name)
        infos = {name: infos[name] for name in list(kinds.values())[:_FAR_MODULES]}
        count = _FAR_BYTES
    wanted = [(info, 0, info.nbytes if count is None else count) for info in infos.values()]
    data = see.checkpoint.read_parts(wanted)
    return {name: (info, raw) for (name, info), raw in zip(infos.items(), data, strict=True)}


@cache
def trivial_bytes(rows: int, group_size: int) -> bytes:
    """The ``g_idx`` of rows in natural order, int32 little-endian: row ``i`` in group ``i // group_size``."""
    size = rows if group_size <= 0 else group_size
    values = array("i", (i // size for i in range(rows)))
    if sys.byteorder == "big":
        values.byteswap()
    return values.tobytes()


def permuted(see: Inspection) -> list[str]:
    """Modules whose ``g_idx`` is not in natural order, as far as read."""
    return see.once("permuted", _find_permuted)


def _find_permuted(see: Inspection) -> list[str]:
    config = see.checkpoint.quantization_config or {}
    out = []
    for name, (info, raw) in g_idx(see).items():
        _, group_size = settings(config, name)
        if not trivial_bytes(info.shape[0], group_size).startswith(raw):
            out.append(name)
    return out


def permuted_tensors(see: Inspection) -> dict[str, TensorInfo]:
    """The ``g_idx`` that are not in natural order, by module, as far as read."""
    return {name: g_idx(see)[name][0] for name in permuted(see)}


def layer_of(see: Inspection, module: str) -> str:
    """What vLLM loads ``module`` as, fused or alone."""
    return asked_as(see, module)[0]


def order_is_whole(see: Inspection) -> bool:
    """Whether every quantized module has a ``g_idx`` as GPTQ with act order leaves it.

    That is: permuted, each group of the right size, and alike in modules that vLLM loads as one. Then the flag
    ``desc_act: true`` is the truth: ``g_idx`` says which scale is whose, and by chance no tensor looks like that.
    """
    if see.checkpoint.files.far:
        return False  # only pieces were read
    packed = {name.removesuffix(".qweight") for name in see.checkpoint.loaded if name.endswith(".qweight")}
    found = g_idx(see)
    if not packed or packed != set(found) or set(permuted(see)) != packed:
        return False
    return not any(unequal(see)) and not any(misgrouped(see, name) for name in packed)


def unequal(see: Inspection) -> Iterator[tuple[str, str, list[str]]]:
    """Fused layers whose parts differ in ``g_idx``: the layer, its first part, and those unlike it."""
    values = g_idx(see)
    parts: dict[str, list[str]] = {}
    for name in values:
        parts.setdefault(layer_of(see, name), []).append(name)
    for layer, (first, *others) in parts.items():
        unlike = [name for name in others if values[name][1] != values[first][1]]
        if unlike:
            yield layer, first, unlike


def misgrouped(see: Inspection, module: str) -> str | None:
    """What is wrong with the groups of a ``g_idx``, as far as read; None if nothing is."""
    import numpy as np

    info, raw = g_idx(see)[module]
    values = np.frombuffer(raw[: len(raw) // 4 * 4], dtype="<i4")
    _, group_size = settings(see.checkpoint.quantization_config or {}, module)
    size = info.shape[0] if group_size <= 0 else group_size
    groups = -(-info.shape[0] // size)
    low, high = int(values.min()), int(values.max())
    if low < 0 or high >= groups:
        return f"runs from {low} to {high}; there are {groups} groups"
    counts = np.bincount(values, minlength=groups)
    rows = np.minimum(size, info.shape[0] - size * np.arange(groups))
    bad = np.flatnonzero(counts > rows if len(raw) < info.nbytes else counts != rows)
    if not len(bad):
        return None
    return f"puts {counts[bad[0]]} rows into group {bad[0]}, which has {rows[bad[0]]}"
