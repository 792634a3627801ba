"""Documents to evaluate on, by domain: read from the same places as calibration rows, never the same rows."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

from gptq_hybrid.common.errors import HybridError

from ._files import JSONL_ENDINGS, jsonl_files, jsonl_folder, on_disk, read_jsonl
from ._mix import Part, is_mix, load_mix
from ._sources import DEFAULT_CALIBRATION, find_source, held_out, source_rows
from .encode import MIN_TOKENS, encode_row, tokens_key
from .rows import Row, drawn, row_key

# What is read of a source that is no file, unless a limit says otherwise: a data set has no end in sight.
_STREAMED = 64


@dataclass(frozen=True, slots=True)
class Document:
    """One document. ``row`` holds ``text``, or ``messages`` with or without ``tools``."""

    domain: str
    row: dict[str, Any]


@dataclass(frozen=True, slots=True)
class EncodedDocument:
    """A document's token ids; ``key`` is the SHA-256 of them as little-endian uint32, in hexadecimal."""

    domain: str
    key: str
    input_ids: list[int]


def load_documents(specs: Sequence[str], *, limit: int | None = None, seed: int = 0) -> list[Document]:
    """The documents of ``specs``, without repetitions.

    Args:
        specs: JSONL files; folders of ``DOMAIN.jsonl`` files; mixes, of which each part gives what it keeps
            for evaluation; the name of one part of the default mix, such as ``code``; anything else that a
            calibration source recognises. A row's domain is the part's
            name, or its own ``domain`` field, else the name of its file or source.
        limit: most documents of each domain. None: all that files hold, 64 of any other source.
        seed: decides which documents of a file a limit keeps, whatever their order there.

    Returns:
        Documents in the order they were read; of equal texts (case and white space aside) the first.

    Raises:
        HybridError: a spec cannot be read, or has no documents.
    """
    found: dict[str, Document] = {}
    for spec in specs:
        documents = list(_read(spec, limit, seed))
        if not documents:
            raise HybridError(f"{spec!r} has no documents", remedy="Give a file or data set with text.")
        for document in documents:
            found.setdefault(row_key(document.row), document)
    if limit is None:
        return list(found.values())
    by_domain: dict[str, list[str]] = defaultdict(list)
    for key, document in found.items():
        by_domain[document.domain].append(key)
    kept = {
        key
        for keys in by_domain.values()
        for key in sorted(keys, key=lambda key: drawn(seed, key))[: max(limit, 0)]
    }
    return [document for key, document in found.items() if key in kept]


def encode_documents(documents: Iterable[Document], tokenizer: Any, max_length: int) -> list[EncodedDocument]:
    """Token ids of each document, cut to ``max_length``.

    Documents under 10 tokens are left out, as are those that differ only past the cut (the first stays), so
    that ``key`` names one document.

    Raises:
        HybridError: messages, but no chat template, or one that rejects them.
    """
    found: dict[str, EncodedDocument] = {}
    for document in documents:
        ids = encode_row(document.row, tokenizer, max_length)
        if len(ids) >= MIN_TOKENS:
            key = tokens_key(ids)
            found.setdefault(key, EncodedDocument(document.domain, key, ids))
    return list(found.values())


def _read(spec: str, limit: int | None, seed: int) -> Iterator[Document]:
    if parts := _parts(spec):
        for part in parts:
            yield from _of_part(part, _STREAMED if limit is None else limit, seed)
    elif spec.endswith(JSONL_ENDINGS) or jsonl_folder(spec):
        for file in jsonl_files(Path(spec)):
            for row in read_jsonl(file):
                yield _document(row, row["domain"])
    else:
        source = find_source(spec)
        for row in source_rows(spec, _STREAMED if limit is None else limit, seed):
            yield _document(row, row.get("domain", source.name))


def _parts(spec: str) -> Sequence[Part]:
    if is_mix(spec):
        return load_mix(spec).parts
    if on_disk(spec) is not None:
        return ()
    return [part for part in load_mix(DEFAULT_CALIBRATION).parts if part.name == spec]


def _of_part(part: Part, count: int, seed: int) -> Iterator[Document]:
    """What a part of a mix keeps for evaluation: its other source, or the rows it holds out."""
    # Read at most: as many as hold what is wanted, and many times over for the luck of the draw.
    most = int(16 * count / (part.hold_out or 1)) + 1024
    if part.evaluation is not None:
        rows = source_rows(part.evaluation, most, seed)
    elif part.hold_out:
        rows = (row for row in source_rows(part.source, most, seed) if held_out(row, part.hold_out))
    else:
        raise HybridError(
            f"part {part.name!r} of the mix keeps nothing for evaluation",
            remedy="Give it `evaluation`, another source, or `hold_out`, such as 0.1; or evaluate on files.",
        )
    for row in islice(filter(part.wants, rows), count):
        yield _document(row, part.name)


def _document(row: Row, domain: str) -> Document:
    return Document(domain, {key: row[key] for key in ("text", "messages", "tools") if key in row})
