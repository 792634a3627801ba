"""An index that tells the truth about the files."""

from __future__ import annotations

from typing import Any

from gptq_hybrid.checkpoint import INDEX_NAME, Checkpoint, TensorLayout, formats
from gptq_hybrid.checkpoint.headers import TensorInfo
from gptq_hybrid.checkpoint.json_files import fetch_json_object
from gptq_hybrid.checkpoint.write import tensor_digest
from gptq_hybrid.doctor.findings import some

from ._plan import Plan


def plan_index(plan: Plan, checkpoint: Checkpoint, layout: TensorLayout) -> None:
    """Name every tensor of every file that a loader should open; nothing, if the index does so already.

    Files outside the index join it only for tensors of the model that are nowhere else. An entry whose file
    is absent or unreadable stays, unless the tensor has turned up in another file: it names what to fetch.
    """
    if not checkpoint.files.folder or (not checkpoint.referenced and not checkpoint.on_disk):
        return
    holds = _tensors_by_file(plan, checkpoint, layout)
    dropped = _copies(checkpoint, plan, holds)
    for name in dropped:
        del holds[name]
        plan.sentences.append(
            f"take {name} out of {INDEX_NAME}: all its tensors lie in other files, bit for bit"
        )
    sizes: dict[str, int] = {}
    weight_map: dict[str, str] = {}
    for name, tensors in holds.items():
        weight_map |= dict.fromkeys(tensors, name)
        sizes |= {tensor: info.nbytes for tensor, info in tensors.items()}
    old = dict(checkpoint.index or {})
    # Of a tensor that two files hold differently the index's choice stays; which is right takes judgement.
    weight_map |= {n: f for n, f in old.items() if n in weight_map and n in holds.get(f, {})}
    broken = {*checkpoint.missing_files, *checkpoint.header_errors, *checkpoint.refused_files} - set(
        plan.shards
    )
    weight_map |= {n: f for n, f in old.items() if f in broken and n not in weight_map}
    if checkpoint.index is None and (broken or len(set(weight_map.values())) < len(holds)):
        return  # an index would hide the file that has to be fetched again, or the one to decide about
    if checkpoint.index is None and checkpoint.index_error is None and len(holds) < 2:
        return  # one file needs no index
    declared = checkpoint.declared_size
    total = sum(sizes.values())
    whole = weight_map.keys() <= sizes.keys()
    weight_map |= _nowhere(old, weight_map, holds, layout)
    if weight_map == old and (not whole or declared is None or declared == total):
        return
    plan.documents[INDEX_NAME] = _content(checkpoint, weight_map, total if whole else None)
    plan.sentences.append(_sentence(old, weight_map, checkpoint))


def _tensors_by_file(
    plan: Plan, checkpoint: Checkpoint, layout: TensorLayout
) -> dict[str, dict[str, TensorInfo]]:
    """Tensors by file, for the files that a loader should open, in its order."""
    _ = checkpoint.loaded, checkpoint.stray
    opened = [name for name in checkpoint.referenced if name in checkpoint.headers and "/" not in name]
    have = dict(checkpoint.loaded)
    have |= {info.name: info for file in plan.shards.values() for _, info in file.tensors}
    wanted = {name.removesuffix(".weight") for name in _wanted(checkpoint, layout)}
    left = [n for n in checkpoint.on_disk if n in checkpoint.headers and n not in {*opened, *plan.shards}]
    while left:
        new = {name: _needed(checkpoint.headers[name].tensors, have, wanted) for name in left}
        name = max(left, key=lambda n: new[n])
        left.remove(name)
        own = checkpoint.headers[name].tensors
        # Beside a tensor that differs from the one in use, a file would decide which of them counts.
        if new[name] and all(t not in have or _alike(checkpoint, i, have[t]) for t, i in own.items()):
            opened.append(name)
            have |= own
    holds = {n: dict(checkpoint.headers[n].tensors) for n in opened if n not in plan.dropped}
    holds |= {name: {info.name: info for _, info in file.tensors} for name, file in plan.shards.items()}
    return holds


def _wanted(checkpoint: Checkpoint, layout: TensorLayout) -> set[str]:
    """Names of the model's dense tensors, under the prefix that the checkpoint uses."""
    ours, other = "model.language_model.", "model."
    if not layout.layers_prefix.startswith(ours):
        ours, other = other, ours
    found = {**checkpoint.stray, **checkpoint.loaded}
    if any(n.startswith(f"{other}layers.") for n in found) and not any(
        n.startswith(f"{ours}layers.") for n in found
    ):
        layout = layout.renamed(ours, other)
    return {spec.name for spec in layout.dense}


def _needed(tensors: dict[str, TensorInfo], have: dict[str, TensorInfo], wanted: set[str]) -> int:
    new = [t for t in tensors if t not in have]
    return sum(t.removesuffix(".weight") in wanted or t.rpartition(".")[0] in wanted for t in new)


def _nowhere(
    old: dict[str, str],
    weight_map: dict[str, str],
    holds: dict[str, dict[str, TensorInfo]],
    layout: TensorLayout,
) -> dict[str, str]:
    """Entries of tensors that the model needs and no file holds: they say where one was looked for."""
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


def _copies(checkpoint: Checkpoint, plan: Plan, holds: dict[str, dict[str, TensorInfo]]) -> list[str]:
    """Files of which every tensor lies in a file that stays, the same bit for bit."""
    gone: list[str] = []
    for name in reversed(list(holds)):
        if name in plan.shards:
            continue
        others = {
            t: i for n, ts in holds.items() if n not in {name, *gone, *plan.shards} for t, i in ts.items()
        }
        own = holds[name]
        if own and all(t in others and _alike(checkpoint, i, others[t]) for t, i in own.items()):
            gone.append(name)
    return gone


def _alike(checkpoint: Checkpoint, a: TensorInfo, b: TensorInfo) -> bool:
    if (a.dtype, a.shape) != (b.dtype, b.shape):
        return False
    return tensor_digest(checkpoint.files, a) == tensor_digest(checkpoint.files, b)


def _content(checkpoint: Checkpoint, weight_map: dict[str, str], total: int | None) -> dict[str, Any]:
    content: dict[str, Any] = {}
    if checkpoint.index is not None:
        content = fetch_json_object(checkpoint.files, INDEX_NAME)
    found = content.get("metadata")
    metadata = dict(found) if isinstance(found, dict) else {}
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
