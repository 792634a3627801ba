"""Files and folders that appear whole or not at all."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from uuid import uuid4


def fsync_path(path: Path) -> None:
    """Flush one file or directory entry to disk."""
    fd = os.open(path, os.O_RDONLY)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


def write_text_atomic(path: Path, text: str) -> None:
    """Replace ``path`` by ``text``: temporary name, fsync, rename, fsync of the folder."""
    temporary = path.with_name(f".{path.name}.{uuid4().hex[:8]}.tmp")
    try:
        with temporary.open("w", encoding="utf-8") as handle:
            handle.write(text)
            handle.flush()
            os.fsync(handle.fileno())
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)
    fsync_path(path.parent)


def write_json_atomic(path: Path, value: Any) -> None:
    """``write_text_atomic`` of indented JSON with a final newline."""
    write_text_atomic(path, json.dumps(value, indent=2, ensure_ascii=False) + "\n")


@contextmanager
def building_directory(target: Path) -> Iterator[Path]:
    """A folder beside ``target`` that becomes ``target`` when the block ends.

    Left by an exception, it is removed and ``target`` never appears. Killed, it
    stays behind under a name (``.NAME.partial-…``) that no loader mistakes for a
    checkpoint. Everything in it is fsynced before the rename.

    Raises:
        FileExistsError: ``target`` exists and is not an empty folder.
    """
    if target.exists() and (not target.is_dir() or any(target.iterdir())):
        raise FileExistsError(f"{target} exists already")
    target.parent.mkdir(parents=True, exist_ok=True)
    building = target.with_name(f".{target.name}.partial-{uuid4().hex[:8]}")
    building.mkdir()
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
