"""What a repair is going to write."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from gptq_hybrid.checkpoint.files import Files
from gptq_hybrid.checkpoint.headers import TensorInfo

# From SHA-256 by tensor to the text that goes into a file.
Describe = Callable[[dict[str, str]], dict[str, str]]


def plain_metadata(digests: dict[str, str]) -> dict[str, str]:
    """What transformers expects in every safetensors file, and nothing else."""
    return {"format": "pt"}


@dataclass(frozen=True)
class TensorFile:
    """A safetensors file to write: where each tensor comes from, and what its metadata says."""

    tensors: tuple[tuple[Files, TensorInfo], ...]
    metadata: Describe = plain_metadata

    @property
    def nbytes(self) -> int:
        return sum(info.nbytes for _, info in self.tensors)

    @property
    def names(self) -> frozenset[str]:
        return frozenset(info.name for _, info in self.tensors)


@dataclass
class Plan:
    """Files to write, in the order of their importance to a loader, and one sentence for each thing done.

    Attributes:
        shards: safetensors files, by name; one that exists already is replaced.
        dropped: safetensors files that a repaired copy leaves out.
        receipt: content of a receipt, from the digests of what was grafted.
        documents: small JSON files, by name; the index, which decides what a loader opens, comes last.
        sentences: what is done, for people.
    """

    shards: dict[str, TensorFile] = field(default_factory=dict)
    dropped: set[str] = field(default_factory=set)
    receipt: Callable[[dict[str, str]], dict[str, Any]] | None = None
    documents: dict[str, dict[str, Any]] = field(default_factory=dict)
    sentences: list[str] = field(default_factory=list)

    @property
    def nbytes(self) -> int:
        """Bytes of tensors to be written."""
        return sum(file.nbytes for file in self.shards.values())
