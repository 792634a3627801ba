"""A checkpoint folder as a loader sees it: config, index, and the headers of the shards it reads."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

from ._safetensors import TensorInfo, read_header
from .errors import CheckpointError

INDEX_NAME = "model.safetensors.index.json"
MTP_FILE = "mtp.safetensors"
# vLLM skips these names when it globs *.safetensors.
_NOT_SHARDS = frozenset({"consolidated.safetensors", "training_args.safetensors"})


def read_json_object(path: Path) -> dict[str, Any]:
    """The JSON object in ``path``.

    Raises:
        CheckpointError: absent, unreadable, or not a JSON object.
    """
    try:
        value = json.loads(path.read_bytes())
    except FileNotFoundError as error:
        raise CheckpointError(path, "does not exist") from error
    except OSError as error:
        raise CheckpointError(path, f"cannot be read: {error.strerror or error}") from error
    except (ValueError, RecursionError) as error:
        raise CheckpointError(path, f"is not valid JSON: {error}") from error
    if not isinstance(value, dict):
        raise CheckpointError(path, "is not a JSON object")
    return value


@dataclass(frozen=True)
class Checkpoint:
    """A local checkpoint folder. Nothing but headers and small JSON files is read.

    vLLM lets the index choose *files* and then reads every tensor of a chosen
    file; without an index it reads every ``*.safetensors``. ``loaded`` follows
    that rule, ``stray`` holds what lies in files the index never names.
    """

    path: Path
    config: Mapping[str, Any]
    index: Mapping[str, str] | None
    header_errors: dict[str, CheckpointError] = field(default_factory=dict)

    @classmethod
    def open(cls, path: str | Path) -> Checkpoint:
        """Read ``config.json`` and the index of a folder.

        Raises:
            CheckpointError: no such folder, no readable ``config.json``, a
                malformed index, or an index entry that points outside the folder.
        """
        folder = Path(path)
        if not folder.is_dir():
            raise CheckpointError(folder, "is not a folder", remedy="Give the folder that holds config.json.")
        config = read_json_object(folder / "config.json")
        return cls(folder, config, _read_index(folder))

    @cached_property
    def on_disk(self) -> tuple[str, ...]:
        """Names of the ``*.safetensors`` files present, sorted."""
        names = (p.name for p in self.path.glob("*.safetensors") if p.is_file())
        return tuple(sorted(name for name in names if name not in _NOT_SHARDS))

    @cached_property
    def referenced(self) -> tuple[str, ...]:
        """Files a loader opens: those the index names, or all present when there is no index."""
        return self.on_disk if self.index is None else tuple(sorted(set(self.index.values())))

    @property
    def missing_files(self) -> tuple[str, ...]:
        """Files the index names that do not exist."""
        return tuple(name for name in self.referenced if not (self.path / name).is_file())

    @cached_property
    def loaded(self) -> dict[str, TensorInfo]:
        """Tensors a loader finds. Files with a bad header are left out and noted in ``header_errors``."""
        return self._headers(self.referenced)

    @cached_property
    def stray(self) -> dict[str, TensorInfo]:
        """Tensors in safetensors files that the index never names."""
        return self._headers(tuple(name for name in self.on_disk if name not in self.referenced))

    def _headers(self, names: tuple[str, ...]) -> dict[str, TensorInfo]:
        tensors: dict[str, TensorInfo] = {}
        for name in names:
            if not (self.path / name).is_file():
                continue
            try:
                tensors.update(read_header(self.path / name, file=name))
            except CheckpointError as error:
                self.header_errors[name] = error
        return tensors

    @property
    def text_config(self) -> Mapping[str, Any]:
        """The language model's config: ``text_config`` of a multimodal checkpoint, else the root."""
        text = self.config.get("text_config")
        return text if isinstance(text, Mapping) else self.config

    @property
    def quantization_config(self) -> Mapping[str, Any] | None:
        found = self.config.get("quantization_config")
        return found if isinstance(found, Mapping) else None

    def read_bytes(self, info: TensorInfo, begin: int = 0, count: int | None = None) -> bytes:
        """``count`` raw bytes of a tensor from its byte ``begin`` on (all of it by default)."""
        count = info.nbytes - begin if count is None else min(count, info.nbytes - begin)
        with (self.path / info.file).open("rb") as handle:
            handle.seek(info.begin + begin)
            return handle.read(count)


def _read_index(folder: Path) -> dict[str, str] | None:
    path = folder / INDEX_NAME
    if not path.exists():
        return None
    weight_map = read_json_object(path).get("weight_map")
    if not isinstance(weight_map, dict) or not all(isinstance(v, str) for v in weight_map.values()):
        raise CheckpointError(path, "has no `weight_map` from tensor names to file names")
    # By file, not by tensor: 2,400 Path objects took half of the time of a whole check at 27B.
    for name in set(weight_map.values()):
        if not name or Path(name).is_absolute() or ".." in Path(name).parts:
            tensor = next(key for key, value in weight_map.items() if value == name)
            raise CheckpointError(path, f"sends tensor {tensor!r} to {name!r}, outside the checkpoint folder")
    return weight_map
