"""Correct the index, so that it tells the truth about the files."""

from __future__ import annotations

from typing import Any

from gptq_hybrid.checkpoint import INDEX_NAME, Checkpoint, TensorInfo, TensorLayout, formats
from gptq_hybrid.checkpoint.json_files import fetch_json_object
from gptq_hybrid.checkpoint.write import tensor_digest
from gptq_hybrid.doctor.findings import some

from ._changes import Changes


def correct_index(changes: Changes, checkpoint: Checkpoint, layout: TensorLayout) -> None:
    """Name every tensor of every file that a loader should open; change nothing if the index does so already.

    A file outside the index joins it only for tensors of the model that are nowhere else. An entry whose file is
    absent or unreadable stays, as it names what to fetch, unless the tensor turned up in another file.
    """
    if not checkpoint.files.folder or (not checkpoint.referenced and not checkpoint.on_disk):
        return
    holds = _tensors_by_file(changes, checkpoint, layout)
    for name in _duplicate_files(checkpoint, changes, holds):
        del holds[name]
        changes.sentences.append(
            f"take {name} out of {INDEX_NAME}: other files hold all its tensors, bit for bit"
        )
    sizes: dict[str, int] = {}
    weight_map: dict[str, str] = {}
    for name, tensors in holds.items():
        weight_map |= dict.fromkeys(tensors, name)
        sizes |= {tensor: info.nbytes for tensor, info in tensors.items()}
    old = dict(checkpoint.index or {})
    # If two files hold different versions of a tensor, the index's choice stays: which is right needs judgement.
    weight_map |= {n: f for n, f in old.items() if n in weight_map and n in holds.get(f, {})}
    broken = {*checkpoint.missing_files, *checkpoint.header_errors, *checkpoint.refused_files}
    broken -= set(changes.shards)
    weight_map |= {n: f for n, f in old.items() if f in broken and n not in weight_map}
    if checkpoint.index is None and (broken or len(set(weight_map.values())) < len(holds)):
        return  # an index would hide the file to fetch again, or the one to decide about
    if checkpoint.index is None and checkpoint.index_error is None and len(holds) < 2:
        return  # one file needs no index
    declared = checkpoint.declared_size
    total = sum(sizes.values())
    whole = weight_map.keys() <= sizes.keys()
    weight_map |= _unfound(old, weight_map, holds, layout)
    if weight_map == old and (not whole or declared is None or declared == total):
        return
    changes.documents[INDEX_NAME] = _content(checkpoint, weight_map, total if whole else None)
    changes.sentences.append(_sentence(old, weight_map, checkpoint))


def _tensors_by_file(
    changes: Changes, checkpoint: Checkpoint, layout: TensorLayout
) -> dict[str, dict[str, TensorInfo]]:
    """Tensors by file, for the files that a loader should open, in its order."""
    checkpoint.read_all_headers()
    opened = [name for name in checkpoint.referenced if name in checkpoint.headers and "/" not in name]
    have = dict(checkpoint.loaded)
    have |= changes.written
    named = layout.as_named_in({**checkpoint.stray, **checkpoint.loaded})
    modules = {spec.name.removesuffix(".weight") for spec in named.dense}
    candidates = [
        n for n in checkpoint.on_disk if n in checkpoint.headers and n not in {*opened, *changes.shards}
    ]
    while candidates:
        gains = {name: _gain(checkpoint.headers[name].tensors, have, modules) for name in candidates}
        name = max(candidates, key=lambda n: gains[n])
        candidates.remove(name)
        own = checkpoint.headers[name].tensors
        # If the file also held another version of a tensor in use, it would decide which of the two counts.
        if gains[name] and all(t not in have or _alike(checkpoint, i, have[t]) for t, i in own.items()):
            opened.append(name)
            have |= own
    holds = {n: dict(checkpoint.headers[n].tensors) for n in opened if n not in changes.dropped}
    holds |= {name: {info.name: info for _, info in file.tensors} for name, file in changes.shards.items()}
    return holds


def _gain(tensors: dict[str, TensorInfo], have: dict[str, TensorInfo], modules: set[str]) -> int:
    """How many tensors of the model a file would add to those at hand."""
    new = [t for t in tensors if t not in have]
    return sum(t.removesuffix(".weight") in modules or t.rpartition(".")[0] in modules for t in new)


def _unfound(
    old: dict[str, str],
    weight_map: dict[str, str],
    holds: dict[str, dict[str, TensorInfo]],
    layout: TensorLayout,
) -> dict[str, str]:
    """Entries for tensors that the model needs and no file holds: they say where a loader looks for them."""
    everything = {name: info for tensors in holds.values() for name, info in tensors.items()}
    needed = {spec.name for spec in layout.dense}
    return {
        name: file
        for name, file in old.items()
        if name in needed
        and name not in weight_map
        and file in holds
        and formats.stored(everything, name.removesuffix(".weight")) is None
    }


def _duplicate_files(
    checkpoint: Checkpoint, changes: Changes, holds: dict[str, dict[str, TensorInfo]]
) -> list[str]:
    """Files whose every tensor is also in a file that stays, bit for bit."""
    duplicates: list[str] = []
    for name in reversed(list(holds)):
        if name in changes.shards:
            continue
        excluded = {name, *duplicates, *changes.shards}
        others = {t: i for n, tensors in holds.items() if n not in excluded for t, i in tensors.items()}
        own = holds[name]
        if own and all(t in others and _alike(checkpoint, i, others[t]) for t, i in own.items()):
            duplicates.append(name)
    return duplicates


def _alike(checkpoint: Checkpoint, a: TensorInfo, b: TensorInfo) -> bool:
    if (a.dtype, a.shape) != (b.dtype, b.shape):
        return False
    return tensor_digest(checkpoint.files, a) == tensor_digest(checkpoint.files, b)


def _content(checkpoint: Checkpoint, weight_map: dict[str, str], total: int | None) -> dict[str, Any]:
    content: dict[str, Any] = {}
    if checkpoint.index is not None:
        content = fetch_json_object(checkpoint.files, INDEX_NAME)
    old = content.get("metadata")
    metadata = dict(old) if isinstance(old, dict) else {}
    if total is not None:
        metadata["total_size"] = total
    return {**content, "metadata": metadata, "weight_map": dict(sorted(weight_map.items()))}


def _sentence(old: dict[str, str], new: dict[str, str], checkpoint: Checkpoint) -> str:
    if checkpoint.index is None:
        return f"write {INDEX_NAME}: {len(new)} tensors in {len(set(new.values()))} files"
    added = [name for name in new if name not in old]
    moved = [name for name in new if name in old and old[name] != new[name]]
    removed = [name for name in old if name not in new]
    parts = [
        f"{verb} {len(names)} tensors ({some(names)})"
        for verb, names in (("name", added), ("correct the file of", moved), ("drop", removed))
        if names
    ]
    return f"in {INDEX_NAME}, " + (", ".join(parts) if parts else "correct total_size")
