"""What a repair is going to write."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from gptq_hybrid.checkpoint import TensorInfo
from gptq_hybrid.checkpoint.files import Files

# From SHA-256 by tensor to a header's `__metadata__`.
Metadata = Callable[[dict[str, str]], dict[str, str]]


def plain_metadata(digests: dict[str, str]) -> dict[str, str]:
    """Return what transformers expects in every safetensors file, and nothing else."""
    return {"format": "pt"}


@dataclass(frozen=True)
class TensorFile:
    """A safetensors file to write: where each tensor comes from, and the file's metadata."""

    tensors: tuple[tuple[Files, TensorInfo], ...]
    metadata: Metadata = plain_metadata

    @property
    def nbytes(self) -> int:
        """Bytes of its tensors."""
        return sum(info.nbytes for _, info in self.tensors)

    @property
    def names(self) -> frozenset[str]:
        """Names of its tensors."""
        return frozenset(info.name for _, info in self.tensors)


@dataclass
class Changes:
    """The files of a repair, and one sentence for each thing it does.

    Attributes:
        shards: safetensors files to write, by name; an existing one is replaced.
        dropped: safetensors files that a repaired copy leaves out.
        receipt: makes the content of a receipt from the digests of the grafted tensors.
        documents: small JSON files to write, by name.
        sentences: what is done, for people.
    """

    shards: dict[str, TensorFile] = field(default_factory=dict)
    dropped: set[str] = field(default_factory=set)
    receipt: Callable[[dict[str, str]], dict[str, Any]] | None = None
    documents: dict[str, dict[str, Any]] = field(default_factory=dict)
    sentences: list[str] = field(default_factory=list)

    @property
    def nbytes(self) -> int:
        """Bytes of tensors to write."""
        return sum(file.nbytes for file in self.shards.values())

    @property
    def space_needed(self) -> int:
        """Bytes on disk to write, with room for headers and JSON."""
        return self.nbytes + (1 << 20)

    @property
    def written(self) -> dict[str, TensorInfo]:
        """Every tensor to write, by name, where it comes from."""
        return {info.name: info for file in self.shards.values() for _, info in file.tensors}
