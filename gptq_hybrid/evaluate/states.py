"""Hidden states on disk, so that an interrupted run continues and a reference is computed only once."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from uuid import uuid4

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

from gptq_hybrid.checkpoint import Checkpoint
from gptq_hybrid.common.atomic import fsync_path
from gptq_hybrid.common.errors import HybridError

_BLOCKS, _BLOCK_BYTES = 64, 4096


def fingerprint(checkpoint: Checkpoint) -> str:
    """Hash the config and, of each weight file, its name, size, header and 64 blocks at even distances: SHA-256.

    Reading all of a 27B model would take a minute. A change of a few values can go unnoticed, so states on disk
    are also tied to the time a file was last written, see :func:`state_key`.
    """
    digest = hashlib.sha256(json.dumps(checkpoint.config, sort_keys=True).encode())
    assert checkpoint.loaded, "headers are read before a fingerprint is taken"
    for name in checkpoint.referenced:
        path = checkpoint.path / name
        size = path.stat().st_size
        digest.update(f"{name} {size}".encode())
        with path.open("rb") as handle:
            header = int.from_bytes(handle.read(8), "little")
            digest.update(handle.read(header))
            body = 8 + header
            for number in range(_BLOCKS):
                handle.seek(body + (size - body) * number // _BLOCKS)
                digest.update(handle.read(_BLOCK_BYTES))
    return digest.hexdigest()


def state_key(checkpoint: Checkpoint, settings: Mapping[str, Any]) -> str:
    """Make a cache key: the checkpoint's files with their mtimes, and every setting that affects the result."""
    times = [(name, (checkpoint.path / name).stat().st_mtime_ns) for name in checkpoint.referenced]
    content = json.dumps([fingerprint(checkpoint), times, dict(settings)], sort_keys=True)
    return hashlib.sha256(content.encode()).hexdigest()


@dataclass(frozen=True, slots=True)
class SavedStates:
    """Tensors by name, and how many layers have run."""

    tensors: dict[str, torch.Tensor]
    layers: int


class StateStore:
    """The states of one checkpoint: at most one file in ``folder``, replaced as a whole.

    Args:
        folder: where the file goes.
        key: what the states belong to, of :func:`state_key`.
        every: seconds between two savings while layers run. Writing 128k tokens of the 27B (2.6 GB) takes seconds,
            as running one of its layers does.
    """

    def __init__(self, folder: Path, key: str, *, every: float = 60.0) -> None:
        self.path = folder / f"states-{key[:24]}.safetensors"
        self._key = key
        self._every = every
        self._last = time.monotonic()

    def load(self) -> SavedStates | None:
        """Return what was saved under this key; None if nothing was, or the file is cut short.

        Also remove what a killed run left of a file it was writing: GBs, at 27B.
        """
        for leftover in self.path.parent.glob(f".{self.path.name}.*.tmp"):
            shutil.rmtree(leftover)
        if not self.path.is_file():
            return None
        try:
            with safe_open(self.path, framework="pt") as handle:
                metadata = handle.metadata() or {}
                if metadata.get("key") != self._key:
                    return None
                return SavedStates({n: handle.get_tensor(n) for n in handle.keys()}, int(metadata["layers"]))  # noqa: SIM118
        except SafetensorError:
            return None

    def save_if_due(self, tensors: Mapping[str, torch.Tensor], layers: int) -> None:
        """:meth:`save`, if the last one is long enough ago."""
        if time.monotonic() - self._last >= self._every:
            self.save(tensors, layers)

    def save(self, tensors: Mapping[str, torch.Tensor], layers: int) -> None:
        """Write the file: under a temporary name, then fsync, then rename.

        Raises:
            HybridError: the file cannot be written.
        """
        # A temporary folder, because safetensors writes to a file of its own choice beside the one it is given.
        folder = self.path.with_name(f".{self.path.name}.{uuid4().hex[:8]}.tmp")
        temporary = folder / self.path.name
        try:
            folder.mkdir(parents=True)
            save_file(
                {name: tensor.contiguous() for name, tensor in tensors.items()},
                temporary,
                metadata={"key": self._key, "layers": str(layers)},
            )
            fsync_path(temporary)
            os.replace(temporary, self.path)
            fsync_path(self.path.parent)
        except (OSError, SafetensorError) as error:
            raise HybridError(
                f"hidden states cannot be written to {self.path.parent}: {error}",
                remedy="Free some space, or use --no-keep-states. What was saved before is still there.",
            ) from error
        finally:
            if folder.exists():
                shutil.rmtree(folder)
        self._last = time.monotonic()

    def remove(self) -> None:
        self.path.unlink(missing_ok=True)


def name_tensors(prefix: str, tensors: Sequence[torch.Tensor]) -> dict[str, torch.Tensor]:
    """Return ``{"prefix.0": …, "prefix.1": …}``; :func:`list_tensors` undoes it."""
    return {f"{prefix}.{number}": tensor for number, tensor in enumerate(tensors)}


def list_tensors(prefix: str, tensors: Mapping[str, torch.Tensor]) -> list[torch.Tensor]:
    """Return the tensors named ``prefix.0``, ``prefix.1``, … in that order."""
    count = sum(name.startswith(f"{prefix}.") for name in tensors)
    return [tensors[f"{prefix}.{number}"] for number in range(count)]
