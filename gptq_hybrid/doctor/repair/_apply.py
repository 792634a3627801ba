"""Carry changes out: in place, or into a copy."""

from __future__ import annotations

import glob
import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

from gptq_hybrid.checkpoint import INDEX_NAME, MTP_FILE, Checkpoint, write_verbatim
from gptq_hybrid.common.atomic import building_directory, building_file, write_json_atomic
from gptq_hybrid.common.errors import HybridError
from gptq_hybrid.common.small_files import MOST_BYTES

from ._changes import Changes
from ._head import RECEIPT

# Called with bytes written so far and in all.
Progress = Callable[[int, int], None]
_COPIED_BELOW = 1 << 20


def apply_in_place(changes: Changes, checkpoint: Checkpoint, progress: Progress | None) -> tuple[str, ...]:
    """Write the changed files into the checkpoint's own folder; return the names of the backups made.

    Each file is written under a temporary name and renamed; what it replaces stays beside it as ``NAME.bak``.
    ``mtp.safetensors`` comes first and the index last, so a loader sees the old head until the one rename that
    shows it the new. If the repair is interrupted, a second run completes it.

    Raises:
        HybridError: not enough room on the disk.
    """
    folder = checkpoint.path
    refuse_full_disk(folder, changes)
    assert set(changes.shards) <= {MTP_FILE}, "main shards are never rewritten in place"
    _remove_left_behind(folder, changes)
    backups: list[str] = []
    digests: dict[str, str] = {}
    count = _counter(progress, changes)
    for name, file in changes.shards.items():
        with building_file(folder / name) as temporary:
            digests |= write_verbatim(temporary, file.tensors, file.metadata, progress=count)
            backups += _backup(folder / name)
    if changes.receipt is not None:
        backups += _backup(folder / RECEIPT)
        write_json_atomic(folder / RECEIPT, changes.receipt(digests))
    for name in sorted(changes.documents, key=lambda name: name == INDEX_NAME):
        backups += _backup(folder / name)
        write_json_atomic(folder / name, changes.documents[name])
    return tuple(backups)


def apply_as_copy(changes: Changes, checkpoint: Checkpoint, target: Path, progress: Progress | None) -> None:
    """Write a repaired copy to ``target``, all of it or nothing; the source is only read.

    Unchanged weights become hard links where the file system allows it, and copies elsewhere.

    Raises:
        HybridError: ``target`` holds files, or there is not enough room.
    """
    if target.exists() and (not target.is_dir() or any(target.iterdir())):
        raise HybridError(f"{target} exists already", remedy="Choose another folder, or remove it first.")
    folder = checkpoint.path
    parent = next(p for p in (target, *target.absolute().parents) if p.is_dir())
    replaced = {*changes.shards, *changes.documents, *changes.dropped}
    unchanged = [name for name in _files_below(folder) if name not in replaced]
    linkable = folder.stat().st_dev == parent.stat().st_dev
    extra = 0 if linkable else sum((folder / name).stat().st_size for name in unchanged)
    refuse_full_disk(parent, changes, extra=extra)
    count = _counter(progress, changes)
    with building_directory(target) as building:
        digests: dict[str, str] = {}
        for name, file in changes.shards.items():
            digests |= write_verbatim(building / name, file.tensors, file.metadata, progress=count)
        for name in unchanged:
            _link_or_copy(folder / name, building / name)
        if changes.receipt is not None:
            write_json_atomic(building / RECEIPT, changes.receipt(digests))
        for name, content in changes.documents.items():
            write_json_atomic(building / name, content)


def refuse_full_disk(folder: Path, changes: Changes, *, extra: int = 0) -> None:
    """Refuse to start unless ``folder`` has room for the changes and ``extra`` bytes.

    Raises:
        HybridError: it has not.
    """
    needed, free = changes.space_needed + extra, shutil.disk_usage(folder).free
    if needed > free:
        raise HybridError(
            f"{folder}: {needed / 1e9:.1f} GB are needed, {free / 1e9:.1f} GB are free",
            remedy="Make room, or use another folder.",
        )


def _counter(progress: Progress | None, changes: Changes) -> Callable[[int], None] | None:
    """Turn ``progress`` into a function that takes the bytes of each piece."""
    if progress is None:
        return None
    done, total = 0, changes.nbytes

    def count(more: int) -> None:
        nonlocal done
        done += more
        progress(done, total)

    return count


def _backup(path: Path) -> list[str]:
    """Keep the content of ``path`` under the first free ``NAME.bak``, ``NAME.bak.1``, …; ``path`` stays as well."""
    if not path.exists():
        return []
    number = 0
    while True:
        backup = path.with_name(f"{path.name}.bak" + (f".{number}" if number else ""))
        if backup.exists() and (backup.samefile(path) or _same_content(backup, path)):
            return []  # left by a run that was interrupted right after
        if not backup.exists():
            break
        number += 1
    _link_or_copy(path, backup, small_too=True)
    return [backup.name]


def _same_content(one: Path, other: Path) -> bool:
    """Whether two small files hold the same; large ones are backed up as links, and need no comparison."""
    sizes = {path.stat().st_size for path in (one, other)}
    return len(sizes) == 1 and max(sizes) <= MOST_BYTES and one.read_bytes() == other.read_bytes()


def _remove_left_behind(folder: Path, changes: Changes) -> None:
    """Remove half-written files of a repair that was killed; the folder is locked, so that nobody writes them."""
    for name in (*changes.shards, *changes.documents, RECEIPT):
        for path in folder.glob(f".{glob.escape(name)}.*.tmp"):
            path.unlink(missing_ok=True)


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
    with building_file(target) as temporary:
        shutil.copyfile(real, temporary)


def _files_below(folder: Path) -> Iterator[str]:
    for path in sorted(folder.rglob("*")):
        relative = path.relative_to(folder)
        if path.is_file() and not any(part.startswith(".") for part in relative.parts):
            yield relative.as_posix()
