"""Plans that move the MTP head: from a donor, out of the main shards, or into them."""

from __future__ import annotations

import re
from datetime import UTC, datetime
from typing import Any

from gptq_hybrid.checkpoint import MTP_FILE, Checkpoint, TensorLayout
from gptq_hybrid.checkpoint.files import Files, HttpFiles
from gptq_hybrid.checkpoint.headers import TensorInfo
from gptq_hybrid.common.errors import HybridError
from gptq_hybrid.doctor.mtp_head import head_of

from ._plan import Describe, Plan, TensorFile

RECEIPT = "mtp-graft.json"
_PREFIX = "mtp."
# What is wrong with a donor's config or with its other files; a head that lies in such a file is missing.
_NOT_OF_THE_HEAD = frozenset(
    {"mtp-dynamic-null", "mtp-quantization", "index-missing-file", "shard-unreadable", "index-unreadable"}
)
_COMMIT = re.compile(r"[0-9a-f]{40}")


def label(files: Files) -> str:
    """What to call a donor in a file that travels: a hub id or address, or a folder's own name."""
    if files.folder is None:
        return files.location.partition("?")[0]
    folder = files.folder.resolve()
    in_cache = folder.parent.name == "snapshots" and folder.parent.parent.name.startswith("models--")
    return folder.parent.parent.name[len("models--") :].replace("--", "/") if in_cache else folder.name


def commit(files: Files) -> str | None:
    """The commit of a donor from the hub or out of its cache, where the address shows it."""
    if files.folder is not None:
        folder = files.folder.resolve()
        last = folder.name if folder.parent.name == "snapshots" else ""
    else:
        # A hub id stands for the commit that its branch was when it was opened.
        last = files.address.rstrip("/").rpartition("/resolve/")[2] if isinstance(files, HttpFiles) else ""
    return last if _COMMIT.fullmatch(last) else None


def plan_graft(
    plan: Plan, checkpoint: Checkpoint, layout: TensorLayout, donor: Checkpoint, *, copy: bool
) -> None:
    """Take the head of ``donor`` for the checkpoint's ``mtp.safetensors``.

    Raises:
        HybridError: the donor's head is faulty or does not fit, or the damaged one lies among other weights
            and there is no ``copy`` to write those to.
    """
    head = head_of(donor, ignoring=_NOT_OF_THE_HEAD, without="")
    _refuse_misfit(checkpoint, layout, donor, head)
    inline = _files_with_head(checkpoint)
    if inline and not copy:
        raise HybridError(
            f"{checkpoint.path}: the damaged head lies in {inline[0]}, and main shards are not rewritten in place",
            remedy="Write a repaired copy instead: add --out DIR.",
        )
    for name in inline:
        _without_head(plan, checkpoint, name)
    origin, revision = label(donor.files), commit(donor.files)
    day = datetime.now(UTC).date().isoformat()
    known = {} if revision is None else {"revision": revision}
    source = {info.name: info.file for info in head}

    def metadata(digests: dict[str, str]) -> dict[str, str]:
        about = {"format": "pt", "mtp_origin": origin} | {f"mtp_{k}": v for k, v in known.items()}
        for name, digest in digests.items():
            about |= {f"sha256:{name}": digest, f"file:{name}": source[name]}
        return about

    def receipt(digests: dict[str, str]) -> dict[str, Any]:
        tensors = {name: {"sha256": digests[name], "file": file} for name, file in sorted(source.items())}
        return {
            "what": f"the MTP head in {MTP_FILE}",
            "donor": origin,
            **known,
            "date": day,
            "tensors": tensors,
        }

    plan.shards[MTP_FILE] = TensorFile(tuple((donor.files, info) for info in head), metadata)
    plan.receipt = receipt
    plan.sentences.append(
        f"take {len(head)} MTP tensors from {origin} into {MTP_FILE}, with a receipt in {RECEIPT}"
    )


def _refuse_misfit(
    checkpoint: Checkpoint, layout: TensorLayout, donor: Checkpoint, head: list[TensorInfo]
) -> None:
    if not layout.mtp:
        raise HybridError(
            f"{checkpoint.path}: config.json declares no MTP layers, so there is no head to graft",
            remedy="Serve it without --speculative-config.",
        )
    wanted = {spec.name: spec.shape for spec in layout.mtp}
    found = {info.name: info.shape for info in head}
    for name, shape in wanted.items():
        if found.get(name) != shape:
            has = list(found[name]) if name in found else "absent"
            raise HybridError(
                f"{donor.location}: {name} is {has}, but {checkpoint.path} needs {list(shape)}",
                remedy="Give a checkpoint of the same model and size.",
            )


def _files_with_head(checkpoint: Checkpoint) -> list[str]:
    """Files a loader opens, other than ``mtp.safetensors``, that hold tensors of the head."""
    names = {info.file for name, info in checkpoint.loaded.items() if name.startswith(_PREFIX)}
    return sorted(names - {MTP_FILE})


def _without_head(plan: Plan, checkpoint: Checkpoint, name: str) -> None:
    kept = [t for n, t in checkpoint.headers[name].tensors.items() if not n.startswith(_PREFIX)]
    if kept:
        plan.shards[name] = TensorFile(
            tuple((checkpoint.files, info) for info in kept), _kept(checkpoint, name)
        )
        plan.sentences.append(f"write {name} without the MTP tensors")
    else:
        plan.dropped.add(name)
        plan.sentences.append(f"leave out {name}, which held nothing but MTP tensors")


def _kept(checkpoint: Checkpoint, *names: str) -> Describe:
    """The metadata of the files, a later one's before an earlier one's."""
    merged = {"format": "pt"}
    for name in names:
        merged |= checkpoint.headers[name].metadata if name in checkpoint.headers else {}
    return lambda digests: merged


def plan_split(plan: Plan, checkpoint: Checkpoint) -> None:
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
            f"{checkpoint.path}: there is an {MTP_FILE} already, which the index does not name",
            remedy="Move it out of the folder, if the head in the main shards is the right one.",
        )
    for name in inline:
        _without_head(plan, checkpoint, name)
    plan.shards[MTP_FILE] = TensorFile(
        tuple((checkpoint.files, info) for info in head), _kept(checkpoint, MTP_FILE)
    )
    plan.sentences.append(f"write {len(head)} MTP tensors into {MTP_FILE}")


def plan_merge(plan: Plan, checkpoint: Checkpoint) -> None:
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
    plan.shards[last] = TensorFile(
        tuple((checkpoint.files, info) for info in {**body, **head}.values()),
        _kept(checkpoint, MTP_FILE, last),
    )
    plan.dropped.add(MTP_FILE)
    plan.sentences.append(f"write {last} with the {len(head)} tensors of {MTP_FILE}, and leave that out")


def space_needed(plan: Plan) -> int:
    """Bytes the plan writes, with room for headers and JSON."""
    return plan.nbytes + (1 << 20)
