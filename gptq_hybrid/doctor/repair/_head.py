"""Move the MTP head: from a donor, out of the main shards, or into them."""

from __future__ import annotations

import re
from collections.abc import Collection
from dataclasses import replace
from datetime import UTC, datetime
from typing import Any

from gptq_hybrid.checkpoint import MTP_FILE, Checkpoint, TensorInfo, TensorLayout
from gptq_hybrid.checkpoint.files import Files
from gptq_hybrid.checkpoint.files.http import HttpFiles
from gptq_hybrid.common.errors import HybridError
from gptq_hybrid.doctor.head_place import Elsewhere, dropped_by_target
from gptq_hybrid.doctor.mtp_head import find_mtp_in

from ._changes import Changes, Metadata, TensorFile

RECEIPT = "mtp-graft.json"
_PREFIX = "mtp."
# Faults of a donor's config or of its other files. If the head lies in such a file, it is reported as missing.
_NOT_OF_THE_HEAD = frozenset(
    {"mtp-dynamic-null", "mtp-quantization", "index-missing-file", "shard-unreadable", "index-unreadable"}
)
_COMMIT = re.compile(r"[0-9a-f]{40}")


def label(files: Files) -> str:
    """Name a donor in a file that travels: its hub id or address, or only the folder's own name."""
    if files.folder is None:
        return files.location.partition("?")[0]
    folder = files.folder.resolve()
    in_cache = folder.parent.name == "snapshots" and folder.parent.parent.name.startswith("models--")
    return folder.parent.parent.name[len("models--") :].replace("--", "/") if in_cache else folder.name


def commit(files: Files) -> str | None:
    """Return the commit of a donor from the hub or from its cache, if the address shows it."""
    if files.folder is not None:
        folder = files.folder.resolve()
        last = folder.name if folder.parent.name == "snapshots" else ""
    else:
        # When a hub id is opened, its address holds the commit of the branch.
        last = files.address.rstrip("/").rpartition("/resolve/")[2] if isinstance(files, HttpFiles) else ""
    return last if _COMMIT.fullmatch(last) else None


def graft_head(
    changes: Changes, checkpoint: Checkpoint, layout: TensorLayout, donor: Checkpoint, *, copy: bool
) -> None:
    """Take the head of ``donor`` for the checkpoint's ``mtp.safetensors``.

    Raises:
        HybridError: the donor's head is faulty or does not fit, or the damaged head lies in a main shard and the
            result is not a ``copy``.
    """
    head = find_mtp_in(donor, ignoring=_NOT_OF_THE_HEAD, without="")
    _refuse_misfit(checkpoint, layout, donor, head)
    inline = _files_with_head(checkpoint)
    if inline and not copy:
        raise HybridError(
            f"{checkpoint.path}: the damaged head lies in {inline[0]}, and main shards are not rewritten in place",
            remedy="Write a repaired copy instead: add --out DIR.",
        )
    for name in inline:
        _strip_head(changes, checkpoint, name)
    origin, revision = label(donor.files), commit(donor.files)
    day = datetime.now(UTC).date().isoformat()
    commits = {} if revision is None else {"revision": revision}
    source_files = {info.name: info.file for info in head}

    def metadata(digests: dict[str, str]) -> dict[str, str]:
        entries = {"format": "pt", "mtp_origin": origin} | {f"mtp_{k}": v for k, v in commits.items()}
        for name, digest in digests.items():
            entries |= {f"sha256:{name}": digest, f"file:{name}": source_files[name]}
        return entries

    def receipt(digests: dict[str, str]) -> dict[str, Any]:
        tensors = {
            name: {"sha256": digests[name], "file": file} for name, file in sorted(source_files.items())
        }
        return {
            "what": f"the MTP head in {MTP_FILE}",
            "donor": origin,
            **commits,
            "date": day,
            "tensors": tensors,
        }

    changes.shards[MTP_FILE] = TensorFile(tuple((donor.files, info) for info in head), metadata)
    changes.receipt = receipt
    changes.sentences.append(
        f"take {len(head)} MTP tensors from {origin} into {MTP_FILE}, with a receipt in {RECEIPT}"
    )


def bring_head(changes: Changes, checkpoint: Checkpoint, head: Elsewhere, *, copy: bool) -> None:
    """Write a head that lies elsewhere into ``mtp.safetensors``, under the names that vLLM looks for.

    Raises:
        HybridError: vLLM fails on the names it has now, they are in a main shard, and the result is not a ``copy``.
    """
    stored = {info.name for info in head.tensors.values()}
    below = {info.file for info in checkpoint.below.values()}
    for name in sorted({info.file for info in head.tensors.values()} - below):
        alone = checkpoint.headers[name].tensors.keys() <= stored
        if name == MTP_FILE and alone:
            continue
        if copy:
            _strip(changes, checkpoint, name, stored)
        elif alone:
            changes.dropped.add(name)  # out of the index; the file stays
        elif not all(dropped_by_target(tensor, checkpoint) for tensor in stored):
            raise HybridError(
                f"{checkpoint.path}: the MTP head is called {head.place}* in {name}, and main shards are not "
                "rewritten in place",
                remedy="Write a repaired copy instead: add --out DIR.",
            )
    files = {info.file for info in head.tensors.values()}
    tensors = tuple((checkpoint.files, replace(info, name=name)) for name, info in head.tensors.items())
    changes.shards[MTP_FILE] = TensorFile(tensors, _metadata_from(checkpoint, *sorted(files)))
    changes.sentences.append(
        f"write the {len(tensors)} MTP tensors of {head.place} into {MTP_FILE}, as mtp.*"
    )


def _refuse_misfit(
    checkpoint: Checkpoint, layout: TensorLayout, donor: Checkpoint, head: list[TensorInfo]
) -> None:
    if not layout.mtp:
        raise HybridError(
            f"{checkpoint.path}: config.json declares no MTP layers, so there is no head to graft",
            remedy="Serve it without --speculative-config.",
        )
    shapes = {info.name: info.shape for info in head}
    for spec in layout.mtp:
        if shapes.get(spec.name) != spec.shape:
            actual = list(shapes[spec.name]) if spec.name in shapes else "absent"
            raise HybridError(
                f"{donor.location}: {spec.name} is {actual}, but {checkpoint.path} needs {list(spec.shape)}",
                remedy="Give a checkpoint of the same model and size.",
            )


def _files_with_head(checkpoint: Checkpoint) -> list[str]:
    """Files with tensors of the head that a loader opens, other than ``mtp.safetensors``."""
    names = {info.file for name, info in checkpoint.loaded.items() if name.startswith(_PREFIX)}
    return sorted(names - {MTP_FILE})


def _strip_head(changes: Changes, checkpoint: Checkpoint, name: str) -> None:
    """Write the file ``name`` without the head, or drop it if it holds nothing else."""
    _strip(changes, checkpoint, name, {n for n in checkpoint.headers[name].tensors if n.startswith(_PREFIX)})


def _strip(changes: Changes, checkpoint: Checkpoint, name: str, head: Collection[str]) -> None:
    body = [t for n, t in checkpoint.headers[name].tensors.items() if n not in head]
    if body:
        changes.shards[name] = TensorFile(
            tuple((checkpoint.files, info) for info in body), _metadata_from(checkpoint, name)
        )
        changes.sentences.append(f"write {name} without the MTP tensors")
    else:
        changes.dropped.add(name)
        changes.sentences.append(f"leave out {name}, which held nothing but MTP tensors")


def _metadata_from(checkpoint: Checkpoint, *names: str) -> Metadata:
    """Keep the metadata of files; where they differ, a later file's counts."""
    merged = {"format": "pt"}
    for name in names:
        merged |= checkpoint.headers[name].metadata if name in checkpoint.headers else {}
    return lambda digests: merged


def split_head(changes: Changes, checkpoint: Checkpoint) -> None:
    """Move the head out of the main shards into ``mtp.safetensors``.

    Raises:
        HybridError: there is no head in the main shards.
    """
    inline = _files_with_head(checkpoint)
    head = [info for name, info in checkpoint.loaded.items() if name.startswith(_PREFIX)]
    if not inline:
        raise HybridError(
            f"{checkpoint.path}: no main shard holds MTP tensors, so there is nothing to split off",
            remedy="Leave out --split-mtp.",
        )
    if checkpoint.has(MTP_FILE) and MTP_FILE not in checkpoint.referenced:
        raise HybridError(
            f"{checkpoint.path}: there is already an {MTP_FILE}, which the index does not name",
            remedy="Move it out of the folder, if the head in the main shards is the right one.",
        )
    for name in inline:
        _strip_head(changes, checkpoint, name)
    changes.shards[MTP_FILE] = TensorFile(
        tuple((checkpoint.files, info) for info in head), _metadata_from(checkpoint, MTP_FILE)
    )
    changes.sentences.append(f"write {len(head)} MTP tensors into {MTP_FILE}")


def merge_head(changes: Changes, checkpoint: Checkpoint) -> None:
    """Move the head from ``mtp.safetensors`` into the last main shard.

    Raises:
        HybridError: there is no ``mtp.safetensors`` that a loader opens, or no other shard.
    """
    head = checkpoint.headers[MTP_FILE].tensors if MTP_FILE in checkpoint.headers else {}
    mains = [name for name in checkpoint.referenced if name in checkpoint.headers and name != MTP_FILE]
    if not head or MTP_FILE not in checkpoint.referenced or not mains:
        raise HybridError(
            f"{checkpoint.path}: there is no indexed {MTP_FILE} beside main shards, so there is nothing to merge",
            remedy="Leave out --merge-mtp.",
        )
    last = mains[-1]
    body = {n: t for n, t in checkpoint.headers[last].tensors.items() if n not in head}
    changes.shards[last] = TensorFile(
        tuple((checkpoint.files, info) for info in {**body, **head}.values()),
        _metadata_from(checkpoint, MTP_FILE, last),
    )
    changes.dropped.add(MTP_FILE)
    changes.sentences.append(f"write {last} with the {len(head)} tensors of {MTP_FILE}, and leave that out")
