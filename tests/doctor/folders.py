"""Questions about a checkpoint folder, for the tests of repair."""

from __future__ import annotations

import json
from pathlib import Path

from gptq_hybrid.checkpoint import INDEX_NAME, MTP_FILE
from gptq_hybrid.doctor import check
from tests.corpus import Workshop


def rules(folder: Path) -> set[str]:
    """Rules that a check against vLLM 0.32 reports."""
    return {finding.rule for finding in check(folder, vllm="0.32").findings}


def content(folder: Path) -> dict[str, bytes]:
    """Bytes of every file at the top level, by name."""
    return {path.name: path.read_bytes() for path in folder.iterdir() if path.is_file()}


def snapshot(folder: Path) -> dict[str, tuple[int, int, int]]:
    """Inode, size and time of every file below the folder, by name: changes with any write."""
    status = {path.name: path.lstat() for path in folder.rglob("*")}
    return {name: (s.st_ino, s.st_size, s.st_mtime_ns) for name, s in status.items()}


def nothing_lost(before: dict[str, bytes], after: dict[str, bytes]) -> bool:
    """Whether every file still exists as it was, under its name or as a backup."""
    return all(
        any(after[n] == data for n in after if n == name or n.startswith(f"{name}.bak"))
        for name, data in before.items()
    )


def weight_map(folder: Path) -> dict[str, str]:
    """File by tensor, from the index."""
    files: dict[str, str] = json.loads((folder / INDEX_NAME).read_text())["weight_map"]
    return files


def without_head(source: Path, folder: Path) -> Path:
    """A copy of a checkpoint whose head is gone from the index, and from the disk if it was apart."""
    shop = Workshop(source, folder)
    shop.index(lambda entries: [entries.pop(name) for name in list(entries) if name.startswith("mtp.")])
    if (shop.folder / MTP_FILE).exists():
        shop.delete(MTP_FILE)
    return shop.folder
