"""Telling one source checkpoint from another without reading all of it."""

from __future__ import annotations

from hashlib import sha256
from pathlib import Path

from gptq_hybrid.checkpoint import INDEX_NAME

_SAMPLES = 64
_SAMPLE_BYTES = 4096


def source_identity(folder: Path) -> dict[str, str]:
    """Fingerprints by file name: ``config.json``, the index, and each safetensors file.

    Of a safetensors file: its size, its header, and 64 pieces of 4 KiB at even distances. The header alone would
    not do: two fine-tunes of one model have the same. An update of all weights changes every piece; a file in which
    only tensors between the pieces were edited is not noticed, which the SHA-256 of 55 GB (half a minute to
    five, by disk, before the run and again before each continuation) would have. Names of folders and times of
    change are left out, so that a copy of the source is as good.
    """
    names = ["config.json", INDEX_NAME, *sorted(path.name for path in folder.glob("*.safetensors"))]
    return {
        name: _tensors(folder / name) if name.endswith(".safetensors") else _whole(folder / name)
        for name in names
        if (folder / name).is_file()
    }


def _whole(path: Path) -> str:
    content = path.read_bytes()
    return f"{len(content)} bytes, {sha256(content).hexdigest()[:16]}"


def _tensors(path: Path) -> str:
    size = path.stat().st_size
    digest = sha256()
    with path.open("rb") as stream:
        length = stream.read(8)
        digest.update(length + stream.read(min(int.from_bytes(length, "little"), size)))
        start = stream.tell()
        for number in range(_SAMPLES):
            stream.seek(start + (size - start) * number // _SAMPLES)
            digest.update(stream.read(_SAMPLE_BYTES))
    return f"{size} bytes, {digest.hexdigest()[:16]}"
