"""``g_idx`` and ``desc_act``: which vLLM loads an act-order checkpoint, and which would talk garbage."""

from __future__ import annotations

import sys
from array import array
from collections.abc import Iterator
from functools import cache

from gptq_hybrid.checkpoint import formats, vllm_versions
from gptq_hybrid.checkpoint._safetensors import TensorInfo
from gptq_hybrid.checkpoint.findings import Fault, Inspection, Severity, rule, some
from gptq_hybrid.checkpoint.formats import compressed_tensors
from gptq_hybrid.checkpoint.formats.gptq import settings
from gptq_hybrid.checkpoint.quantization import method_of

from ._linears import is_gptq, mtp_linears, output_head

_REQUANTIZE = "Quantize again, with a recipe that needs no order at run time: qwen36 quantize ORIGINAL TARGET"
# Over a network, the first 512 rows of the modules of the first layers of each kind: act order that leaves
# them in place would be an accident of about one in 10^200.
_FAR_BYTES, _FAR_MODULES = 2048, 10


def _g_idx(see: Inspection) -> dict[str, tuple[TensorInfo, bytes]]:
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


def _permuted(see: Inspection) -> list[str]:
    """Modules whose ``g_idx`` is not in natural order, as far as read."""
    return see.once("permuted", _find_permuted)


def _find_permuted(see: Inspection) -> list[str]:
    config = see.checkpoint.quantization_config or {}
    out = []
    for name, (info, raw) in _g_idx(see).items():
        _, group_size = settings(config, name)
        if not trivial_bytes(info.shape[0], group_size).startswith(raw):
            out.append(name)
    return out


@rule(
    "g-idx-flag",
    scope="act-order",
    explanation="With `desc_act: false` every vLLM ignores g_idx, and takes each row for one of another group.",
    remedy=f"{_REQUANTIZE}. Do not change the flag by hand.",
)
def flag(see: Inspection) -> Iterator[Fault]:
    config = see.checkpoint.quantization_config
    # AutoRound's config has no desc_act: vLLM reads none, and ignores any g_idx.
    ignored = is_gptq(see) and not config.get("desc_act") if config else False
    if config is None or not (ignored or formats.format_of(config) is formats.AUTO_ROUND):
        return
    names = _permuted(see)
    if names:
        yield Fault(
            f"{len(names)} modules have a permuted g_idx although the config has no desc_act: true; every vLLM "
            f"ignores it and computes garbage: {some(names)}",
            tensor=f"{names[0]}.g_idx",
            file=_g_idx(see)[names[0]][0].file,
        )


@rule(
    "g-idx-fused",
    scope="act-order",
    explanation="vLLM keeps one g_idx for a fused layer: the last one loaded wins, and nothing compares them.",
    remedy=f"{_REQUANTIZE}.",
)
def fused(see: Inspection) -> Iterator[Fault]:
    if not is_gptq(see):
        return
    values = _g_idx(see)
    for module in see.layout.fused:
        present = [shard for shard in module.shards if shard in values]
        unequal = [s for s in present[1:] if values[s][1] != values[present[0]][1]]
        if unequal:
            yield Fault(
                f"{present[0]} and {', '.join(unequal)} differ in g_idx, but vLLM loads them as one {module.name}",
                tensor=f"{unequal[0]}.g_idx",
                file=values[unequal[0]][0].file,
            )


@rule(
    "g-idx-range",
    scope="act-order",
    explanation="A group number past the last group reads scales that are not there.",
    remedy=f"{_REQUANTIZE}.",
)
def in_range(see: Inspection) -> Iterator[Fault]:
    config = see.checkpoint.quantization_config
    if config is None or not is_gptq(see):
        return
    for name in _permuted(see):
        info, raw = _g_idx(see)[name]
        values = array("i", raw[: len(raw) // 4 * 4])
        if sys.byteorder == "big":
            values.byteswap()
        _, group_size = settings(config, name)
        groups = 1 if group_size <= 0 else -(-info.shape[0] // group_size)
        if min(values) < 0 or max(values) >= groups:
            yield Fault(
                f"{name}.g_idx runs from {min(values)} to {max(values)}; there are {groups} groups",
                tensor=info.name,
                file=info.file,
            )


@rule(
    "act-order-version",
    scope="act-order",
    explanation="vLLM 0.30 gave up act order (#54809) and refuses such a checkpoint before it starts.",
    remedy=f"Serve it with vLLM 0.29 or older. {_REQUANTIZE}.",
)
def version(see: Inspection) -> Iterator[Fault]:
    config = see.checkpoint.quantization_config
    if config is None or not declared(see):
        return
    if is_gptq(see) and not _permuted(see) and _g_idx(see):
        return  # act-order-flag-only says what to do about that
    limit = vllm_versions.NO_ACT_ORDER
    if see.vllm is not None and see.vllm.at_least(limit):
        yield Fault(
            f"desc_act: true; vLLM {limit} and later, {see.vllm} among them, refuse it", file="config.json"
        )
    else:
        yield Fault(
            "desc_act: true loads in vLLM up to 0.29 alone, and costs a permutation of the input of every layer",
            file="config.json",
            severity=Severity.WARNING,
        )


@rule(
    "act-order-flag-only",
    scope="act-order",
    explanation="Static groups leave g_idx trivial, so nothing needs the flag; vLLM 0.30 refuses it all the same.",
    remedy="Set the flag to false, every g_idx being proven trivial first: qwen36 repair {path}",
)
def flag_only(see: Inspection) -> Iterator[Fault]:
    config = see.checkpoint.quantization_config
    if config is None or not is_gptq(see) or not declared(see):
        return
    if not _g_idx(see) or _permuted(see):
        return
    refused = see.vllm is not None and see.vllm.at_least(vllm_versions.NO_ACT_ORDER)
    yield Fault(
        "desc_act: true although every g_idx is trivial"
        + (f"; vLLM {see.vllm} refuses the flag" if refused else "; vLLM 0.30 and later refuse the flag"),
        file="config.json",
        severity=Severity.ERROR if refused else Severity.WARNING,
    )


@rule(
    "act-order-packed",
    scope="act-order",
    explanation="vLLM 0.30 gave up compressed-tensors' group act order too; weight and static order are fine.",
    remedy="Quantize again with actorder weight or static.",
)
def packed(see: Inspection) -> Iterator[Fault]:
    config = see.checkpoint.quantization_config
    if config is None or method_of(config) != "compressed-tensors":
        return
    order = compressed_tensors.act_order(config)
    if order in {"group", "dynamic"}:
        refused = see.vllm is not None and see.vllm.at_least(vllm_versions.NO_ACT_ORDER)
        yield Fault(
            f"actorder {order}; vLLM {vllm_versions.NO_ACT_ORDER} and later refuse it",
            file="config.json",
            severity=None if refused else Severity.WARNING,
        )
        return
    stray = [name for name in see.checkpoint.loaded if name.endswith(".weight_g_idx")]
    if stray:
        yield Fault(
            f"{len(stray)} weight_g_idx tensors, though actorder is {order}: vLLM {vllm_versions.STRICT_NAMES} "
            "and later end on them",
            tensor=stray[0],
        )


def declared(see: Inspection) -> bool:
    """Whether the config asks for act order in a way that vLLM 0.30 refuses."""
    config = see.checkpoint.quantization_config
    if config is None or not is_gptq(see):
        return False
    base, size = bool(config.get("desc_act")), config.get("group_size", 128)
    if base and size != -1:
        return True
    dynamic = config.get("dynamic")
    rules = dynamic.items() if isinstance(dynamic, dict) else ()
    return any(
        isinstance(entry, dict)
        and not pattern.startswith("-:")
        and entry.get("desc_act", base)
        and entry.get("group_size", size) != -1
        for pattern, entry in rules
    )


ACT_ORDER_RULES = (flag, fused, in_range, version, flag_only, packed)
