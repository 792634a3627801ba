"""Write files and folders that appear whole or not at all."""

from __future__ import annotations

import fcntl
import glob
import json
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from uuid import uuid4


def fsync_path(path: str | Path) -> None:
    """Flush one file or folder entry to disk."""
    path = Path(path)
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


@contextmanager
def building_file(path: str | Path) -> Iterator[Path]:
    """Yield a temporary name beside ``path``; the file written there becomes ``path`` when the block ends.

    The file is fsynced before the rename, and its folder after. An exception removes it and leaves ``path`` as it
    was. A killed process leaves it behind under a hidden name (``.NAME.….tmp``) that no loader takes for a file.
    """
    path = Path(path)
    temporary = path.with_name(f".{path.name}.{uuid4().hex[:8]}.tmp")
    try:
        yield temporary
        fsync_path(temporary)
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)
    fsync_path(path.parent)


def keep_previous(path: str | Path, content: str | None = None) -> Path | None:
    """Keep a file that is about to be replaced as ``NAME.bak``, or the first of ``NAME.bak.1``, … that is free.

    Args:
        path: the file.
        content: what it will hold; a file that holds it already is not kept.

    Returns:
        What it is kept as; None where there is nothing to keep.
    """
    path = Path(path)
    if not path.is_file() or (content is not None and path.read_bytes() == content.encode()):
        return None
    backup, number = path.with_name(f"{path.name}.bak"), 0
    while backup.exists():
        number += 1
        backup = path.with_name(f"{path.name}.bak.{number}")
    with building_file(backup) as temporary:
        shutil.copy2(path, temporary)
    return backup


def json_text(value: Any) -> str:
    """Return what :func:`write_json_atomic` writes."""
    return json.dumps(value, indent=2, ensure_ascii=False) + "\n"


def write_text_atomic(path: str | Path, text: str) -> None:
    """Replace ``path`` by ``text`` in UTF-8, as :func:`building_file` does."""
    path = Path(path)
    with building_file(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def write_json_atomic(path: str | Path, value: Any) -> None:
    """Replace ``path`` by indented JSON with a final newline, as :func:`building_file` does."""
    path = Path(path)
    write_text_atomic(path, json_text(value))


@contextmanager
def locked(folder: Path) -> Iterator[bool]:
    """Hold a lock on a folder; yields whether it was to be had. Where a file system has no locks, it always is."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            yield False
        except OSError:
            yield True
        else:
            yield True
    finally:
        os.close(descriptor)


def _remove_left_behind(target: Path) -> None:
    """Remove what killed processes left of ``target``: folders without their process, which nobody has locked."""
    for path in target.parent.glob(f".{glob.escape(target.name)}.partial-*"):
        process = path.name.rpartition(".partial-")[2].partition("-")[0]
        if path.is_dir() and not (process.isdecimal() and _runs(int(process))):
            with locked(path) as free:
                if free:
                    shutil.rmtree(path, ignore_errors=True)


def _runs(process: int) -> bool:
    try:
        os.kill(process, 0)
    except (ProcessLookupError, OverflowError):
        return False
    except PermissionError:  # another user's
        return True
    return True


@contextmanager
def building_directory(target: str | Path) -> Iterator[Path]:
    """Yield a folder beside ``target`` that becomes ``target`` when the block ends.

    Every file in it is fsynced before the rename. An exception removes the folder, and ``target`` never appears.
    A killed process leaves it behind under a hidden name (``.NAME.partial-…``) that no loader mistakes for a
    checkpoint; the next one that builds the same target removes it.

    Raises:
        FileExistsError: ``target`` exists and is not an empty folder.
    """
    target = Path(target)
    if target.exists() and (not target.is_dir() or any(target.iterdir())):
        raise FileExistsError(f"{target} exists already")
    target.parent.mkdir(parents=True, exist_ok=True)
    _remove_left_behind(target)
    building = target.with_name(f".{target.name}.partial-{os.getpid()}-{uuid4().hex[:8]}")
    building.mkdir()
    # The kernel releases the lock, however the process ends.
    with locked(building):
        yield from _built(building, target)


def _built(building: Path, target: Path) -> Iterator[Path]:
    try:
        yield building
        for folder, _, names in os.walk(building):
            for name in names:
                fsync_path(Path(folder, name))
            fsync_path(Path(folder))
        if target.exists():
            target.rmdir()
        building.rename(target)
        fsync_path(target.parent)
    except BaseException:
        shutil.rmtree(building, ignore_errors=True)
        raise
