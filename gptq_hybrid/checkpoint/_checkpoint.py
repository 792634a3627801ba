"""A checkpoint as a loader sees it: config, index, and the headers of the shards it reads."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

from gptq_hybrid.common.errors import BoundsError, CheckpointError, TransferError

from .draft_vocab_file import (
    DRAFT_VOCAB_FILE,
    DraftVocab,
    parse_draft_vocab,
    read_vocab_size,
    refuse_foreign,
)
from .files import Files, LocalFiles, Range, file_label
from .headers import Header, TensorInfo, read_headers
from .json_files import fetch_json_object
from .vocabulary import read_vocabulary

INDEX_NAME = "model.safetensors.index.json"
MTP_FILE = "mtp.safetensors"
# The manifest of what the checkpoint was calibrated on.
CALIBRATION_FILE = "calibration.json"
# vLLM skips these names when it globs *.safetensors.
_NOT_SHARDS = frozenset({"consolidated.safetensors", "training_args.safetensors"})
# Where a place cannot be listed: the usual names of weights that no index names.
_PROBED = ("model.safetensors", MTP_FILE)
# A family member of a terabyte has a few hundred shards.
MOST_FILES = 4096
# The 27B's index has 0.2 MB. Parsed, one takes about eight times its size.
MAX_INDEX_BYTES = 12 << 20
# Files in folders below whose headers are read, where a head may have been put.
_MOST_BELOW = 64


@dataclass(frozen=True)
class Checkpoint:
    """A checkpoint in a folder or on a server; reads only headers and small JSON files by itself.

    vLLM lets the index choose *files* and then reads every tensor of a chosen file; without an index it reads every
    ``*.safetensors``. ``loaded`` follows that rule, and ``stray`` holds the tensors of files that the index never
    names.

    Attributes:
        files: where its files are.
        config: the parsed ``config.json``.
        header_errors: by file, why its header could not be read; complete after :meth:`read_all_headers`.
        headers: by file, the header; complete after :meth:`read_all_headers`.
    """

    files: Files
    config: Mapping[str, Any]
    header_errors: dict[str, CheckpointError] = field(default_factory=dict)
    headers: dict[str, Header] = field(default_factory=dict)

    @classmethod
    def open(cls, path: str | Path, *, follow_links: bool = True) -> Checkpoint:
        """Open the checkpoint in a folder.

        Raises:
            CheckpointError: no such folder, or no readable ``config.json``.
        """
        folder = Path(path)
        if not folder.is_dir():
            raise CheckpointError(folder, "is not a folder", remedy="Give the folder that holds config.json.")
        return cls.read(LocalFiles(folder, follow_links=follow_links))

    @classmethod
    def read(cls, files: Files) -> Checkpoint:
        """Open a checkpoint wherever its files are.

        Raises:
            CheckpointError: ``config.json`` is absent or not a JSON object, or the place cannot be reached.
        """
        return cls(files, fetch_json_object(files, "config.json"))

    @property
    def location(self) -> str:
        """Folder, hub id or URL, for messages."""
        return self.files.location

    @property
    def path(self) -> Path:
        """The local folder.

        Raises:
            CheckpointError: the checkpoint is on a server.
        """
        if self.files.folder is None:
            raise CheckpointError(self.location, "is not a local folder", remedy="Download it first.")
        return self.files.folder

    def has(self, name: str) -> bool:
        """Whether the checkpoint has a file ``name``."""
        return name in self._listed if self._listed is not None else self.files.size(name) is not None

    @cached_property
    def _listed(self) -> frozenset[str] | None:
        return None if self.listing is None else frozenset(self.listing)

    @cached_property
    def listing(self) -> tuple[str, ...] | None:
        """Names of all files at the top level; None where the place cannot be listed."""
        return self.files.names()

    @cached_property
    def _index_content(self) -> dict[str, Any] | CheckpointError | None:
        if not self.has(INDEX_NAME):
            return None
        try:
            content = fetch_json_object(self.files, INDEX_NAME, most=MAX_INDEX_BYTES)
        except TransferError:
            raise
        except CheckpointError as error:
            return error
        label, weight_map = f"{self.location}/{INDEX_NAME}", content.get("weight_map")
        if not isinstance(weight_map, dict) or not all(isinstance(v, str) for v in weight_map.values()):
            return CheckpointError(label, "has no `weight_map` from tensor names to file names")
        if len(set(weight_map.values())) > MOST_FILES:
            return CheckpointError(label, f"names more than {MOST_FILES} files")
        return content

    @property
    def index(self) -> Mapping[str, str] | None:
        """File by tensor; None without an index, or with one that cannot be used (see ``index_error``)."""
        content = self._index_content
        return content["weight_map"] if isinstance(content, dict) else None

    @property
    def index_error(self) -> CheckpointError | None:
        """Why the index cannot be used; None for a usable one, and without one."""
        content = self._index_content
        return content if isinstance(content, CheckpointError) else None

    @property
    def declared_size(self) -> object:
        """``metadata.total_size`` of the index, the bytes of all tensors; None if its writer left it out."""
        content = self._index_content
        metadata = content.get("metadata") if isinstance(content, dict) else None
        return metadata.get("total_size") if isinstance(metadata, dict) else None

    @cached_property
    def on_disk(self) -> tuple[str, ...]:
        """Names of the ``*.safetensors`` files present, sorted; as for vLLM, hidden ones do not count.

        Raises:
            CheckpointError: there are more than ``MOST_FILES``.
        """
        listed = self.listing
        if listed is None:
            listed = tuple(name for name in _PROBED if self.files.size(name) is not None)
        present = tuple(n for n in sorted(listed) if is_weight_file(n) and n not in _NOT_SHARDS)
        if len(present) > MOST_FILES:
            raise BoundsError(
                self.location, f"holds {len(present)} safetensors files; more than {MOST_FILES} are not read"
            )
        return present

    @cached_property
    def referenced(self) -> tuple[str, ...]:
        """Files a loader opens, in its order: those the index names, or all present without one."""
        names = self.on_disk if self.index is None else set(self.index.values())
        return tuple(sorted(names, key=_natural))

    @cached_property
    def refused_files(self) -> dict[str, str]:
        """Files that are never opened here although a loader may be sent to them, and why."""
        reasons = {name: self.files.refusal(name) for name in {*self.referenced, *self.on_disk}}
        return {name: reason for name, reason in sorted(reasons.items()) if reason is not None}

    @cached_property
    def missing_files(self) -> tuple[str, ...]:
        """Files that the index names and that do not exist."""
        present = {*self.refused_files, *self.on_disk}
        return tuple(
            name for name in self.referenced if name not in present and self.files.size(name) is None
        )

    @cached_property
    def loaded(self) -> dict[str, TensorInfo]:
        """Tensors a loader finds, by name. Files with a bad header are left out; ``header_errors`` has them.

        Of a tensor in two files, the file whose name sorts last counts: vLLM reads files in that order.
        """
        return self._tensors(self.referenced)

    def read_all_headers(self) -> None:
        """Read the headers of every file, so that ``headers`` and ``header_errors`` are complete."""
        _ = self.loaded, self.stray

    @cached_property
    def stray(self) -> dict[str, TensorInfo]:
        """Tensors in safetensors files that the index never names, by name."""
        referenced = set(self.referenced)
        return self._tensors(tuple(name for name in self.on_disk if name not in referenced))

    @cached_property
    def below(self) -> dict[str, TensorInfo]:
        """Tensors in safetensors files one folder below that the index never names, by name; local folders only."""
        folder = self.files.folder
        if folder is None:
            return {}
        found = (path.relative_to(folder).as_posix() for path in sorted(folder.glob("*/*.safetensors")))
        names = [name for name in found if not name.startswith(".") and name not in self.referenced]
        return self._tensors(tuple(names[:_MOST_BELOW]))

    def _tensors(self, names: tuple[str, ...]) -> dict[str, TensorInfo]:
        skipped = {*self.refused_files, *self.missing_files}
        tensors: dict[str, TensorInfo] = {}
        for name, header in read_headers(self.files, [n for n in names if n not in skipped]).items():
            if isinstance(header, CheckpointError):
                self.header_errors[name] = header
            else:
                self.headers[name] = header
        for name in names:
            if name in self.headers:
                tensors.update(self.headers[name].tensors)
        return tensors

    @property
    def text_config(self) -> Mapping[str, Any]:
        """The language model's config: ``text_config`` of a multimodal checkpoint, else the root."""
        text = self.config.get("text_config")
        return text if isinstance(text, Mapping) else self.config

    @property
    def multimodal(self) -> bool:
        """Whether ``config.json`` is that of the multimodal class, with the language model's in ``text_config``."""
        return self.text_config is not self.config

    @property
    def quantization_config(self) -> Mapping[str, Any] | None:
        """What vLLM reads: ``quantization_config`` or ``compression_config`` of the root, else of the text."""
        for owner in (self.config, self.text_config):
            for key in ("quantization_config", "compression_config"):
                if isinstance(settings := owner.get(key), Mapping):
                    return settings
        return None

    @cached_property
    def draft_vocab(self) -> DraftVocab | CheckpointError | None:
        """The ``draft_vocab.json``, or why it cannot be used; None if there is none.

        On a server it is not compared with the tokenizer, which is 20 MB, and only found where files can be listed.
        """
        if DRAFT_VOCAB_FILE not in (self.listing or ()):
            return None
        label = file_label(self.files, DRAFT_VOCAB_FILE)
        try:
            vocab = parse_draft_vocab(label, fetch_json_object(self.files, DRAFT_VOCAB_FILE))
            if not self.files.far:
                refuse_foreign(label, vocab, read_vocabulary(self.files), read_vocab_size(self.files))
        except TransferError:
            raise
        except CheckpointError as error:
            return error
        return vocab

    def read_bytes(self, info: TensorInfo, begin: int = 0, count: int | None = None) -> bytes:
        """Read ``count`` raw bytes of a tensor from its byte ``begin`` on; all of them by default."""
        return self.files.read(_range(info, begin, count))

    def read_parts(self, parts: list[tuple[TensorInfo, int, int]]) -> list[bytes]:
        """Read several ``(tensor, begin, count)`` at once, which saves round trips over a network.

        Raises:
            CheckpointError: one of them could not be read.
        """
        pieces = self.files.read_many([_range(*part) for part in parts])
        for piece in pieces:
            if isinstance(piece, Exception):
                raise piece
        return [piece for piece in pieces if isinstance(piece, bytes)]


def is_weight_file(name: str) -> bool:
    """Whether vLLM's search for ``*.safetensors`` finds a file of this name."""
    return name.endswith(".safetensors") and not name.startswith(".")


def _natural(name: str) -> list[tuple[int, str]]:
    """Sort key of vLLM's order of files: digits by their value, so that model-10 follows model-9."""
    return [(int(part), "") if part.isdecimal() else (-1, part) for part in re.split(r"(\d{1,18})", name)]


def _range(info: TensorInfo, begin: int, count: int | None) -> Range:
    left = info.nbytes - begin
    return Range(info.file, info.begin + begin, left if count is None else min(count, left))
