"""Tell one checkpoint from another without reading all of its weights.

Of a safetensors file, its size, its header and 64 blocks of 4,096 bytes at even distances are hashed. The
header alone would not do: two fine-tunes of one model share it. Training changes every block. An edit that
falls between the blocks goes unnoticed; only a hash of all 55 GB of a 27B would see it, and that takes half a
minute to five, by disk.
"""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import TYPE_CHECKING

from ._checkpoint import INDEX_NAME, Checkpoint

if TYPE_CHECKING:
    from hashlib import _Hash

_BLOCKS, _BLOCK_BYTES = 64, 4096


def checkpoint_fingerprint(checkpoint: Checkpoint) -> str:
    """Return one SHA-256, in hex, of a local checkpoint: its config and the files that a loader reads.

    Raises:
        CheckpointError: the checkpoint is on a server.
    """
    digest = hashlib.sha256(json.dumps(checkpoint.config, sort_keys=True).encode())
    for name in checkpoint.referenced:
        path = checkpoint.path / name
        digest.update(f"{name} {path.stat().st_size}".encode())
        _add_samples(digest, path)
    return digest.hexdigest()


def file_fingerprints(folder: Path) -> dict[str, str]:
    """Fingerprint ``config.json``, the index and each safetensors file of ``folder``, by file name.

    Folder names and times of change are left out, so that a copy has the same fingerprints.
    """
    fingerprints = {}
    for name in ("config.json", INDEX_NAME):
        if (folder / name).is_file():
            content = (folder / name).read_bytes()
            fingerprints[name] = f"{len(content)} bytes, {hashlib.sha256(content).hexdigest()[:16]}"
    for path in sorted(folder.glob("*.safetensors")):
        if path.is_file():
            digest = hashlib.sha256()
            _add_samples(digest, path)
            fingerprints[path.name] = f"{path.stat().st_size} bytes, {digest.hexdigest()[:16]}"
    return fingerprints


def _add_samples(digest: _Hash, path: Path) -> None:
    """Hash a safetensors file's header and blocks spread evenly over its data."""
    size = path.stat().st_size
    with path.open("rb") as stream:
        header = int.from_bytes(stream.read(8), "little")
        # A header that claims more than the file holds is cut to it.
        digest.update(stream.read(min(header, size)))
        start = min(8 + header, size)
        for number in range(_BLOCKS):
            stream.seek(start + (size - start) * number // _BLOCKS)
            digest.update(stream.read(_BLOCK_BYTES))
