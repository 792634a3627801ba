"""A checkpoint folder as it would be after a repair that was not carried out."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

from gptq_hybrid.checkpoint import TensorInfo
from gptq_hybrid.checkpoint.files import Files, LocalFiles, Range
from gptq_hybrid.checkpoint.write import planned_header
from gptq_hybrid.common.errors import CheckpointError

from ._changes import Changes


class PlannedFiles(LocalFiles):
    """The files of ``folder`` with ``changes`` in place of what they replace; nothing is written.

    A receipt is not among them: no rule reads it.
    """

    def __init__(self, folder: Path, changes: Changes, *, copy: bool) -> None:
        super().__init__(folder)
        self._dropped = changes.dropped if copy else set()
        self._documents = {name: json.dumps(body).encode() for name, body in changes.documents.items()}
        self._shards = {name: _Shard(file.tensors) for name, file in changes.shards.items()}

    def names(self) -> tuple[str, ...] | None:
        names = set(super().names() or ()) - self._dropped
        return tuple(sorted(names | set(self._documents) | set(self._shards)))

    def refusal(self, name: str) -> str | None:
        return None if name in self._documents or name in self._shards else super().refusal(name)

    def size(self, name: str) -> int | None:
        if name in self._documents:
            return len(self._documents[name])
        if name in self._shards:
            return self._shards[name].size
        return None if name in self._dropped else super().size(name)

    def read(self, part: Range) -> bytes:
        if part.name in self._documents:
            end = None if part.count is None else part.begin + part.count
            data = self._documents[part.name][part.begin : end]
        elif part.name in self._shards:
            data = self._shards[part.name].read(part)
        elif part.name in self._dropped:
            raise CheckpointError(f"{self.location}/{part.name}", "does not exist")
        else:
            return super().read(part)
        self.reads.note(len(data))
        return data

    def read_many(self, parts: Sequence[Range]) -> list[bytes | Exception]:
        out: list[bytes | Exception] = []
        for part in parts:
            try:
                out.append(self.read(part))
            except CheckpointError as error:
                out.append(error)
        return out

    def digest(self, name: str) -> str | None:
        return None if name in self._documents or name in self._shards else super().digest(name)


class _Shard:
    """A safetensors file that would be written: its header, then tensors where they lie now."""

    def __init__(self, tensors: Sequence[tuple[Files, TensorInfo]]) -> None:
        self._header, self._tensors = planned_header(tensors)
        self.size = len(self._header) + sum(info.nbytes for _, info in self._tensors)

    def read(self, part: Range) -> bytes:
        begin = part.begin
        end = self.size if part.count is None else min(self.size, begin + part.count)
        pieces = [self._header[begin:end]]
        at = len(self._header)
        for files, info in self._tensors:
            first, last = max(begin, at), min(end, at + info.nbytes)
            if first < last:
                pieces.append(files.read(Range(info.file, info.begin + first - at, last - first)))
            at += info.nbytes
        return b"".join(pieces)
