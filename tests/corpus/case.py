"""What a case is, and the tools to break a copy of a checkpoint with."""

from __future__ import annotations

import json
import os
import shutil
import struct
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file

INDEX = "model.safetensors.index.json"
MTP_FILE = "mtp.safetensors"
Tensors = dict[str, torch.Tensor]


class Workshop:
    """A private copy of a checkpoint: files are hard links until they are changed, then new files."""

    def __init__(self, source: Path, folder: Path) -> None:
        self.folder = folder
        folder.mkdir(parents=True)
        for path in source.iterdir():
            try:
                os.link(path, folder / path.name)
            except OSError:  # another file system
                shutil.copyfile(path, folder / path.name)

    def path(self, name: str) -> Path:
        """Return the path of a file that may be written: its link to the original is cut."""
        path = self.folder / name
        if path.exists():
            content = path.read_bytes()
            path.unlink()
            path.write_bytes(content)
        return path

    def delete(self, *names: str) -> None:
        for name in names:
            (self.folder / name).unlink()

    def json(self, name: str, change: Callable[[dict[str, Any]], object]) -> None:
        path = self.path(name)
        content = json.loads(path.read_text())
        change(content)
        path.write_text(json.dumps(content))

    def config(self, change: Callable[[dict[str, Any]], object]) -> None:
        self.json("config.json", change)

    def quantization(self, **changes: Any) -> None:
        """Change quantization_config in both its copies; None removes a key."""

        def merge(owner: dict[str, Any]) -> None:
            for key, value in changes.items():
                owner.pop(key, None) if value is None else owner.update({key: value})

        self.config(lambda config: merge(config["quantization_config"]))
        if (self.folder / "quantize_config.json").exists():
            self.json("quantize_config.json", merge)

    def index(self, change: Callable[[dict[str, str]], object]) -> None:
        self.json(INDEX, lambda index: change(index["weight_map"]))

    def file_of(self, tensor: str) -> str:
        """Return the name of the file that holds a tensor."""
        weight_map: dict[str, str] = json.loads((self.folder / INDEX).read_text())["weight_map"]
        return weight_map[tensor]

    def shard(self, name: str, change: Callable[[Tensors], object], *, reindex: bool = True) -> None:
        """Change the tensors of one file, and by default the index with them."""
        path = self.folder / name
        tensors = {key: value.clone() for key, value in load_file(path).items()}
        before = set(tensors)
        change(tensors)
        path.unlink()
        save_file({k: v.contiguous() for k, v in tensors.items()}, path, metadata={"format": "pt"})
        if reindex and (self.folder / INDEX).exists():

            def adjust(weight_map: dict[str, str]) -> None:
                for gone in before - set(tensors):
                    weight_map.pop(gone, None)
                weight_map.update(dict.fromkeys(set(tensors) - before, name))

            self.index(adjust)
            self.total_size()

    def tensor(self, name: str, change: Callable[[torch.Tensor], torch.Tensor | None]) -> None:
        """Replace one tensor; None drops it."""

        def edit(tensors: Tensors) -> None:
            new = change(tensors[name])
            tensors.pop(name) if new is None else tensors.update({name: new})

        self.shard(self.file_of(name), edit)

    def total_size(self) -> None:
        """Make the index's total_size true again."""
        total = 0
        for name in set(json.loads((self.folder / INDEX).read_text())["weight_map"].values()):
            total += sum(t.nbytes for t in load_file(self.folder / name).values())
        self.json(INDEX, lambda index: index.setdefault("metadata", {}).update(total_size=total))

    def header(self, name: str, change: Callable[[dict[str, Any]], object]) -> None:
        """Rewrite a shard's header and leave its data alone."""
        path = self.path(name)
        raw = path.read_bytes()
        (length,) = struct.unpack("<Q", raw[:8])
        header = json.loads(raw[8 : 8 + length])
        change(header)
        new = json.dumps(header).encode()
        path.write_bytes(struct.pack("<Q", len(new)) + new + raw[8 + length :])

    def copy(self, name: str, new: str) -> None:
        shutil.copyfile(self.folder / name, self.folder / new)


@dataclass(frozen=True)
class CorpusCase:
    """One small mutation of a good checkpoint.

    ``rules``: ids that must be among the findings. ``verdict``: what `check` must say. ``vllm``: the release
    to check against; ``plugin``: whether with this distribution's plugin.
    """

    id: str
    base: str
    apply: Callable[[Workshop], object]
    rules: frozenset[str]
    verdict: str = "faulty"
    vllm: str = "0.32.0"
    mtp: bool = True
    plugin: bool = False


def faulty(
    id: str,
    base: str,
    rules: str,
    apply: Callable[[Workshop], object],
    *,
    vllm: str = "0.32.0",
    mtp: bool = True,
    plugin: bool = False,
) -> CorpusCase:
    """A case that must not be called good."""
    return CorpusCase(id, base, apply, frozenset(rules.split()), "faulty", vllm, mtp, plugin)


def odd(
    id: str,
    base: str,
    rules: str,
    apply: Callable[[Workshop], object],
    *,
    vllm: str = "0.32.0",
    mtp: bool = True,
    plugin: bool = False,
) -> CorpusCase:
    """A case that serves, with warnings of ``rules`` and no others."""
    return CorpusCase(id, base, apply, frozenset(rules.split()), "serves", vllm, mtp, plugin)
