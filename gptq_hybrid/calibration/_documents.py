"""Documents to evaluate on, by domain: from the same places as calibration rows, but never the same rows."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

from gptq_hybrid.common.errors import HybridError

from ._files import CSV_ENDINGS, ROW_ENDINGS, is_row_folder, path_kind, read_rows, row_files
from ._mix import Part, is_mix, load_mix
from ._sources import DEFAULT_CALIBRATION, find_source, is_held_out, no_usable_rows, source_rows
from .encode import MIN_TOKENS, encode_row, tokens_key
from .rows import LeftOut, Row, row_key, shuffle_key

# Documents read of a source that is no file, unless a limit says otherwise: a streamed data set may have no end.
_STREAMED = 64


@dataclass(frozen=True, slots=True)
class Document:
    """One document. ``row`` holds ``text``, or ``messages`` with or without ``tools``."""

    domain: str
    row: dict[str, Any]


@dataclass(frozen=True, slots=True)
class EncodedDocument:
    """A document's token ids; ``key`` is the SHA-256 of the ids as little-endian uint32, in hexadecimal."""

    domain: str
    key: str
    input_ids: list[int]


def load_documents(
    specs: Sequence[str],
    *,
    limit: int | None = None,
    seed: int = 0,
    on_left_out: Callable[[LeftOut], None] = lambda _: None,
) -> list[Document]:
    """Read the documents of ``specs``, without repetitions.

    The domain of a document from a mix is the name of its part. Otherwise it is the row's own ``domain`` field, or
    else the name of its file or source.

    Args:
        specs: JSONL or Parquet files; folders of ``DOMAIN.jsonl`` files; mixes, of which each part gives what it
            keeps for evaluation; the name of one part of the default mix, such as ``code``; anything else that a
            calibration source recognises.
        limit: most documents of each domain. None: all that files hold, 64 of any other source.
        seed: decides which documents a limit keeps, whatever their order in the file.
        on_left_out: called for each row that cannot be used, such as one with images.

    Returns:
        Documents in the order they were read. Of texts that are equal apart from case and white space, the first.

    Raises:
        HybridError: a spec cannot be read, or has no documents.
    """
    documents: dict[str, Document] = {}
    for spec in specs:
        left_out: list[LeftOut] = []
        read = list(_read(spec, limit, seed, left_out.append))
        for row in left_out:
            on_left_out(row)
        if left_out and not read:
            raise no_usable_rows(repr(spec), left_out)
        if not read:
            raise HybridError(f"{spec!r} has no documents", remedy="Give a file or data set with text.")
        for document in read:
            documents.setdefault(row_key(document.row), document)
    if limit is None:
        return list(documents.values())
    by_domain: dict[str, list[str]] = defaultdict(list)
    for key, document in documents.items():
        by_domain[document.domain].append(key)
    chosen = {
        key
        for keys in by_domain.values()
        for key in sorted(keys, key=lambda key: shuffle_key(seed, key))[: max(limit, 0)]
    }
    return [document for key, document in documents.items() if key in chosen]


def encode_documents(documents: Iterable[Document], tokenizer: Any, max_length: int) -> list[EncodedDocument]:
    """Encode each document to token ids, cut to ``max_length``.

    Documents under 10 tokens are left out. Of documents that differ only after the cut the first stays, so that a
    ``key`` names one document.

    Raises:
        HybridError: documents hold messages, and there is no chat template or it rejects them.
    """
    encoded: dict[str, EncodedDocument] = {}
    for document in documents:
        ids = encode_row(document.row, tokenizer, max_length)
        if len(ids) >= MIN_TOKENS:
            key = tokens_key(ids)
            encoded.setdefault(key, EncodedDocument(document.domain, key, ids))
    return list(encoded.values())


def _read(
    spec: str, limit: int | None, seed: int, on_left_out: Callable[[LeftOut], None]
) -> Iterator[Document]:
    if parts := _mix_parts(spec):
        for part in parts:
            yield from _read_part(part, _STREAMED if limit is None else limit, seed, on_left_out)
    elif spec.endswith((*ROW_ENDINGS, *CSV_ENDINGS)) or is_row_folder(spec):
        for file in row_files(Path(spec)):
            for row in read_rows(file, on_left_out):
                yield _document(row, row["domain"])
    else:
        source = find_source(spec)
        for row in source_rows(spec, _STREAMED if limit is None else limit, seed, on_left_out):
            yield _document(row, row.get("domain", source.name))


def evaluation_sources(spec: str) -> list[str]:
    """The sources that documents of ``spec`` are read from.

    Raises:
        HybridError: it names a mix that is not there or is none, or a part that keeps nothing for evaluation.
    """
    parts = _mix_parts(spec)
    for part in parts:
        _refuse_unheld(part)
    return [part.evaluation or part.source for part in parts] or [spec]


def _refuse_unheld(part: Part) -> None:
    if part.evaluation is None and not part.hold_out:
        raise HybridError(
            f"part {part.name!r} of the mix keeps nothing for evaluation",
            remedy="Give it `evaluation`, another source, or `hold_out`, such as 0.1; or evaluate on files.",
        )


def _mix_parts(spec: str) -> Sequence[Part]:
    """The parts of the mix that ``spec`` names, or the one part of the default mix called ``spec``."""
    if is_mix(spec):
        return load_mix(spec).parts
    if path_kind(spec) is not None:
        return ()
    return [part for part in load_mix(DEFAULT_CALIBRATION).parts if part.name == spec]


def _read_part(
    part: Part, count: int, seed: int, on_left_out: Callable[[LeftOut], None]
) -> Iterator[Document]:
    """Read what a part of a mix keeps for evaluation: its other source, or the rows it holds out."""
    # Enough rows that the share held out gives ``count`` of them, with a wide margin for an unlucky draw.
    most = int(16 * count / (part.hold_out or 1)) + 1024
    _refuse_unheld(part)
    if part.evaluation is not None:
        rows: Iterator[Row] = source_rows(part.evaluation, most, seed, on_left_out)
    else:
        all_rows = source_rows(part.source, most, seed, on_left_out)
        rows = (row for row in all_rows if is_held_out(row, part.hold_out))
    for row in islice(filter(part.accepts, rows), count):
        yield _document(row, part.name)


def _document(row: Row, domain: str) -> Document:
    return Document(domain, {key: row[key] for key in ("text", "messages", "tools") if key in row})
