"""Carrying a plan out: in place, or as a copy."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from uuid import uuid4

from gptq_hybrid.checkpoint import INDEX_NAME, MTP_FILE, Checkpoint
from gptq_hybrid.checkpoint.write import write_verbatim
from gptq_hybrid.common.atomic import building_directory, fsync_path, write_json_atomic
from gptq_hybrid.common.errors import HybridError

from ._head import RECEIPT, space_needed
from ._plan import Plan

# Called with bytes written so far and in all.
Progress = Callable[[int, int], None]
_COPIED_BELOW = 1 << 20


def apply_in_place(plan: Plan, checkpoint: Checkpoint, progress: Progress | None) -> tuple[str, ...]:
    """Write the plan's files into the checkpoint's own folder; returns names of the backups made.

    A file is written under a temporary name and renamed; what it replaces stays beside it as ``NAME.bak``.
    ``mtp.safetensors`` comes first and the index last, so that a loader sees the old head until the one
    rename that shows it the new. Interrupted, a second run completes it.

    Raises:
        HybridError: not enough room on the disk.
    """
    folder = checkpoint.path
    refuse_full_disk(folder, plan)
    assert set(plan.shards) <= {MTP_FILE}, "main shards are never rewritten in place"
    backups: list[str] = []
    digests: dict[str, str] = {}
    for name, file in plan.shards.items():
        temporary = folder / f".{name}.{uuid4().hex[:8]}.tmp"
        try:
            digests |= write_verbatim(
                temporary, file.tensors, file.metadata, progress=_counted(progress, plan)
            )
            backups += _backup(folder / name)
            temporary.replace(folder / name)
        finally:
            temporary.unlink(missing_ok=True)
        fsync_path(folder)
    if plan.receipt is not None:
        backups += _backup(folder / RECEIPT)
        write_json_atomic(folder / RECEIPT, plan.receipt(digests))
    for name in sorted(plan.documents, key=lambda name: name == INDEX_NAME):
        backups += _backup(folder / name)
        write_json_atomic(folder / name, plan.documents[name])
    return tuple(backups)


def apply_as_copy(plan: Plan, checkpoint: Checkpoint, target: Path, progress: Progress | None) -> None:
    """Write a repaired copy to ``target``, all of it or nothing; the source is only read.

    Weights that stay as they are become hard links where the file system allows it, and copies elsewhere.

    Raises:
        HybridError: ``target`` holds files, or there is not enough room.
    """
    if target.exists() and (not target.is_dir() or any(target.iterdir())):
        raise HybridError(f"{target} exists already", remedy="Choose another folder, or remove it first.")
    folder = checkpoint.path
    parent = next(p for p in (target, *target.absolute().parents) if p.is_dir())
    replaced = {*plan.shards, *plan.documents, *plan.dropped}
    kept = [name for name in _files_below(folder) if name not in replaced]
    linked = _same_file_system(folder, parent)
    extra = 0 if linked else sum((folder / name).stat().st_size for name in kept)
    refuse_full_disk(parent, plan, extra=extra)
    with building_directory(target) as building:
        digests: dict[str, str] = {}
        for name, file in plan.shards.items():
            digests |= write_verbatim(
                building / name, file.tensors, file.metadata, progress=_counted(progress, plan)
            )
        for name in kept:
            _link_or_copy(folder / name, building / name)
        if plan.receipt is not None:
            write_json_atomic(building / RECEIPT, plan.receipt(digests))
        for name, content in plan.documents.items():
            write_json_atomic(building / name, content)


def refuse_full_disk(folder: Path, plan: Plan, *, extra: int = 0) -> None:
    """Raise unless ``folder`` has room for what the plan writes and ``extra`` bytes beside."""
    needed, free = space_needed(plan) + extra, shutil.disk_usage(folder).free
    if needed > free:
        raise HybridError(
            f"{folder}: {needed / 1e9:.1f} GB are needed, {free / 1e9:.1f} GB are free",
            remedy="Make room, or use another folder.",
        )


def _counted(progress: Progress | None, plan: Plan) -> Callable[[int], None] | None:
    if progress is None:
        return None
    done = 0

    def count(more: int) -> None:
        nonlocal done
        done += more
        progress(done, plan.nbytes)

    return count


def _backup(path: Path) -> list[str]:
    """Keep what ``path`` holds under the first free ``NAME.bak``, ``NAME.bak.1``, …; it stays in place as well."""
    if not path.exists():
        return []
    number = 0
    while True:
        kept = path.with_name(f"{path.name}.bak" + (f".{number}" if number else ""))
        if kept.exists() and kept.samefile(path):
            return []  # left by a run that was interrupted right after
        if not kept.exists():
            break
        number += 1
    _link_or_copy(path, kept, small_too=True)
    return [kept.name]


def _link_or_copy(source: Path, target: Path, *, small_too: bool = False) -> None:
    target.parent.mkdir(parents=True, exist_ok=True)
    real = source.resolve()
    # People edit small files in place; a link would change the original with them.
    if small_too or real.stat().st_size >= _COPIED_BELOW or real.suffix == ".safetensors":
        try:
            os.link(real, target)
        except OSError:
            pass
        else:
            return
    # Under a name no loader takes for a file, until it is whole.
    temporary = target.with_name(f".{target.name}.{uuid4().hex[:8]}.tmp")
    try:
        shutil.copyfile(real, temporary)
        temporary.replace(target)
    finally:
        temporary.unlink(missing_ok=True)


def _files_below(folder: Path) -> Iterator[str]:
    for path in sorted(folder.rglob("*")):
        relative = path.relative_to(folder)
        if path.is_file() and not any(part.startswith(".") for part in relative.parts):
            yield relative.as_posix()


def _same_file_system(folder: Path, other: Path) -> bool:
    return folder.stat().st_dev == other.stat().st_dev
