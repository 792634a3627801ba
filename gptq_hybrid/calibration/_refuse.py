"""Refuse data that cannot be read, from names and the file system, before a tokenizer is loaded."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

from gptq_hybrid.common.errors import HybridError

from ._documents import evaluation_sources
from ._files import FORMATS, path_kind, row_files, text_files
from ._load import excluded_files
from ._mix import is_mix, load_mix
from ._sources import find_source, source_rows

# Files up to so many bytes in all are read through: a bad line is found now and not a minute later.
_READ_THROUGH = 64 << 20
_FILE_SOURCES = ("jsonl", "text")


def refuse_bad_calibration(spec: str, exclude: Sequence[str | Path] = ()) -> None:
    """Refuse a ``--calibration`` value that cannot be read; nothing is fetched from a network.

    Args:
        spec: what :func:`load_calibration` takes.
        exclude: files of evaluation documents, as it takes them.

    Raises:
        HybridError: no source recognises it, a file is absent, one of up to 64 MiB has a bad line, or ``exclude``
            names something else than a file of rows.
    """
    for source in _parts(spec):
        _refuse(source, f"calibration {source!r} has no rows")
    for file in excluded_files(exclude):
        if path_kind(file) is None:
            raise HybridError(
                f"--exclude {file} does not exist", remedy="Give the file or folder that is evaluated on."
            )


def refuse_bad_documents(specs: Sequence[str]) -> None:
    """Refuse ``--data`` to evaluate on that cannot be read; nothing is fetched from a network.

    Raises:
        HybridError: see :func:`refuse_bad_calibration`.
    """
    for spec in specs:
        for source in evaluation_sources(spec):
            _refuse(source, f"{source!r} has no documents")


def _parts(spec: str) -> Iterator[str]:
    if is_mix(spec):
        yield from (part.source for part in load_mix(spec).parts)
    else:
        yield spec


def _refuse(spec: str, empty: str) -> None:
    source = find_source(spec)
    if source.name not in _FILE_SOURCES:
        return
    path = Path(spec)
    if path_kind(spec) is None:
        raise HybridError(f"file {path} does not exist", remedy=FORMATS)
    files = [*row_files(path), *([] if path.is_file() else text_files(path))]
    if sum(file.stat().st_size for file in files) <= _READ_THROUGH:
        for _ in source_rows(spec, 1, 0):
            return
        raise HybridError(empty, remedy="Give a file or data set with text.")
