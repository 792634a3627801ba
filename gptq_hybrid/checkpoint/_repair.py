"""Repairs that touch only small files, or add one: the index, a null ``dynamic``, a grafted MTP head.

A replaced file stays beside its successor as ``NAME.bak``. Each step is a rename,
so an interrupted repair leaves the old checkpoint or the new one.
"""

from __future__ import annotations

import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from uuid import uuid4

from ._atomic import fsync_path, write_json_atomic
from ._check import check_mtp
from ._checkpoint import INDEX_NAME, MTP_FILE, Checkpoint
from ._head import find_mtp, write_mtp
from ._json import read_json_object
from .errors import HybridError
from .findings import Finding
from .plugins import layout_for


@dataclass(frozen=True, slots=True)
class Repair:
    """What was done, one sentence each, and what is still wrong."""

    done: tuple[str, ...]
    left: tuple[Finding, ...]


def repair(path: str | Path, *, mtp_from: str | Path | None = None) -> Repair:
    """Make a checkpoint's MTP head loadable, if that takes no rewriting of weights.

    Args:
        path: the checkpoint's folder.
        mtp_from: a checkpoint of the same model to take a lost head from.

    Raises:
        CheckpointError: ``path`` or ``mtp_from`` cannot be read.
        HybridError: the donor's head does not fit, or the damaged one lies in a main shard.
    """
    done: list[str] = []
    checkpoint = Checkpoint.open(path)
    rules = {finding.rule for finding in check_mtp(checkpoint)}
    if "mtp-dynamic-null" in rules:
        done.append(_drop_null_dynamic(checkpoint))
    if mtp_from is not None and rules - {"mtp-dynamic-null", "mtp-unindexed"}:
        done.append(_graft(checkpoint, Checkpoint.open(mtp_from)))
    elif "mtp-unindexed" in rules:
        done.append(_index_stray_head(checkpoint))
    return Repair(tuple(done), tuple(check_mtp(Checkpoint.open(path))))


def _replace_json(path: Path, value: dict[str, Any]) -> None:
    if path.exists():
        shutil.copyfile(path, path.with_name(path.name + ".bak"))
    write_json_atomic(path, value)


def _drop_null_dynamic(checkpoint: Checkpoint) -> str:
    for name in ("config.json", "quantize_config.json"):
        path = checkpoint.path / name
        if not path.exists():
            continue
        content = read_json_object(path)
        owner = content.get("quantization_config", content) if name == "config.json" else content
        if "dynamic" in owner and owner["dynamic"] is None:
            del owner["dynamic"]
            _replace_json(path, content)
    return "removed the null `dynamic` from the quantization config"


def _index_stray_head(checkpoint: Checkpoint) -> str:
    names = {spec.name: checkpoint.stray[spec.name].file for spec in layout_for(checkpoint.config).mtp}
    _extend_index(checkpoint, names)
    return f"named {len(names)} MTP tensors in {INDEX_NAME} ({', '.join(sorted(set(names.values())))})"


def _extend_index(checkpoint: Checkpoint, names: dict[str, str]) -> None:
    path = checkpoint.path / INDEX_NAME
    index = read_json_object(path) if path.exists() else {"weight_map": {}}
    if not path.exists():
        index["weight_map"] = {name: info.file for name, info in checkpoint.loaded.items()}
    index["weight_map"] = dict(sorted({**index["weight_map"], **names}.items()))
    files = sorted(set(index["weight_map"].values()))
    sizes = {**checkpoint.stray, **checkpoint.loaded}
    index.setdefault("metadata", {})["total_size"] = sum(i.nbytes for i in sizes.values() if i.file in files)
    _replace_json(path, index)


def _graft(checkpoint: Checkpoint, donor: Checkpoint) -> str:
    wanted = {spec.name: spec.shape for spec in layout_for(checkpoint.config).mtp}
    if not wanted:
        raise HybridError(
            f"{checkpoint.path}: config.json declares no MTP layers, so there is no head to graft",
            remedy="Serve it without --speculative-config.",
        )
    head = find_mtp(donor.path)
    for info in head:
        if wanted.get(info.name) != info.shape:
            raise HybridError(
                f"{donor.path}: {info.name} is {list(info.shape)}, but {checkpoint.path} needs "
                f"{list(wanted.get(info.name, ()))}",
                remedy="Give a checkpoint of the same model and size.",
            )
    inline = sorted({i.file for n, i in checkpoint.loaded.items() if n in wanted and i.file != MTP_FILE})
    if inline:
        raise HybridError(
            f"{checkpoint.path}: the damaged head lies in {inline[0]} among weights that are not rewritten",
            remedy="Quantize again, or fetch that file again.",
        )
    target = checkpoint.path / MTP_FILE
    building = f".{MTP_FILE}.{uuid4().hex[:8]}.tmp"
    try:
        write_mtp(checkpoint.path, donor.path, head, name=building)
        if target.exists():
            target.replace(target.with_name(MTP_FILE + ".bak"))
        (checkpoint.path / building).replace(target)
        fsync_path(checkpoint.path)
    finally:
        (checkpoint.path / building).unlink(missing_ok=True)
    _extend_index(Checkpoint.open(checkpoint.path), dict.fromkeys(wanted, MTP_FILE))
    return f"took {len(head)} MTP tensors from {donor.path} into {MTP_FILE}, and named them in {INDEX_NAME}"
