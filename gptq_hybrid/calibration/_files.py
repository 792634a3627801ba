"""Rows of local files: JSONL (plain, .gz or .xz) and text documents, single or a folder of them."""

from __future__ import annotations

import gzip
import json
import lzma
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, TextIO

from gptq_hybrid.checkpoint import HybridError

from ._rows import Row, check_row

JSONL_ENDINGS = (".jsonl", ".json", ".jsonl.gz", ".jsonl.xz")
TEXT_ENDINGS = (".txt", ".md", ".rst", ".text")


def jsonl_files(path: Path) -> list[Path]:
    """``path`` itself, or the JSONL files of a folder, sorted by name."""
    if not path.is_dir():
        return [path]
    return sorted(file for file in path.iterdir() if file.is_file() and file.name.endswith(JSONL_ENDINGS))


def text_files(path: Path) -> list[Path]:
    """``path`` itself, or the text files below a folder, at any depth, sorted by path."""
    if not path.is_dir():
        return [path]
    return sorted(file for file in path.rglob("*") if file.is_file() and file.suffix in TEXT_ENDINGS)


def read_jsonl(path: Path) -> Iterator[Row]:
    """The checked rows of one file; ``domain`` is each row's own, or the file's name without its ending.

    Raises:
        HybridError: the file cannot be read, or a line is not a row; the line is named.
    """
    if not path.is_file():
        raise HybridError(f"calibration file {path} does not exist")
    domain = path.name
    for ending in sorted(JSONL_ENDINGS, key=len, reverse=True):
        domain = domain.removesuffix(ending)
    try:
        with _open(path) as handle:
            for row in checked(_parsed(path, handle), f"{path}: line", 1):
                yield {"domain": domain, **row}
    except (OSError, EOFError, UnicodeDecodeError, lzma.LZMAError) as error:
        raise HybridError(f"calibration file {path} cannot be read: {error}") from error


def read_text(path: Path) -> Iterator[Row]:
    """The one row of a text file; none if it is blank.

    Raises:
        HybridError: it cannot be read as UTF-8.
    """
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise HybridError(f"calibration file {path} cannot be read: {error}") from error
    if text.strip():
        yield {"text": text}


def checked(rows: Iterable[Any], what: str, first: int) -> Iterator[Row]:
    """Each row through :func:`check_row`; ``what`` and its number, from ``first``, name it in an error.

    Raises:
        HybridError: a row is not one.
    """
    for number, row in enumerate(rows, first):
        try:
            yield check_row(row)
        except ValueError as error:
            raise HybridError(
                f"{what} {number} {error}", remedy='A row is {"messages": [...]} or {"text": "..."}.'
            ) from error


def _open(path: Path) -> TextIO:
    if path.suffix == ".gz":
        return gzip.open(path, "rt", encoding="utf-8")
    if path.suffix == ".xz":
        return lzma.open(path, "rt", encoding="utf-8")
    return path.open(encoding="utf-8")


def _parsed(path: Path, handle: TextIO) -> Iterator[Any]:
    for number, line in enumerate(handle, 1):
        if not line.strip():
            raise HybridError(f"{path}: line {number} is empty", remedy="Remove it.")
        try:
            yield json.loads(line)
        except ValueError as error:
            raise HybridError(f"{path}: line {number} is not valid JSON: {error}") from error
