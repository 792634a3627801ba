"""Rows of local files: JSONL (plain, .gz or .xz), Parquet and text documents, single or in a folder."""

from __future__ import annotations

import gzip
import json
import lzma
import os
import zlib
from collections.abc import Callable, Iterator, Sequence
from hashlib import file_digest, sha256
from importlib import import_module
from io import TextIOWrapper
from pathlib import Path
from typing import Any, Literal, TextIO

from gptq_hybrid.common.errors import HybridError

from .rows import LeftOut, LeftOutError, Row, parse_row

JSONL_ENDINGS = (".jsonl", ".json", ".jsonl.gz", ".jsonl.xz")
TEXT_ENDINGS = (".txt", ".md", ".rst", ".text")
PARQUET_ENDING = ".parquet"
ROW_ENDINGS = (*JSONL_ENDINGS, PARQUET_ENDING)
FILE_ENDINGS = ROW_ENDINGS + TEXT_ENDINGS
# Not read: which of its columns is the text, and whether quotes and line breaks are escaped, differs by program.
CSV_ENDINGS = (".csv", ".tsv")
FORMATS = (
    f"Files that are read: {', '.join(JSONL_ENDINGS)} (one JSON object a line), {PARQUET_ENDING}, "
    f"{', '.join(TEXT_ENDINGS)}; all in UTF-8."
)
_ROW_FORM = 'A row is {"messages": [...]} or {"text": "..."}.'
_TEXT_COLUMNS = ("messages", "conversations", "text")
_COLUMNS = (*_TEXT_COLUMNS, "tools", "domain", "licence", "license")
# A calibration row starts where a piece of text starts, so a book in one piece would give only one row. English
# has about 4 characters a token.
_PIECE = 32_000


def path_kind(spec: str) -> Literal["file", "folder"] | None:
    """Say what ``spec`` names on this disk; None for nothing, and for text that cannot be a path."""
    if not spec:
        return None
    try:
        return "folder" if Path(spec).is_dir() else "file" if Path(spec).exists() else None
    except (OSError, ValueError):
        return None


def jsonl_files(path: str | Path) -> list[Path]:
    """Return ``path`` itself, or the JSONL files of a folder, sorted by name."""
    path = Path(path)
    return _files_of(path, JSONL_ENDINGS)


def row_files(path: Path) -> list[Path]:
    """Return ``path`` itself, or the JSONL and Parquet files of a folder, sorted by name."""
    return _files_of(path, ROW_ENDINGS)


def _files_of(path: Path, endings: tuple[str, ...]) -> list[Path]:
    if not path.is_dir():
        return [path]
    return sorted(file for file in path.iterdir() if file.name.endswith(endings) and _is_shown(file, path))


def _is_shown(file: Path, folder: Path) -> bool:
    """Whether ``file`` is a file that is not hidden: macOS puts ``._x.jsonl`` beside ``x.jsonl``."""
    return file.is_file() and not any(part.startswith(".") for part in file.relative_to(folder).parts)


def text_files(path: Path) -> list[Path]:
    """Return ``path`` itself, or the text files below a folder, at any depth, sorted by path."""
    if not path.is_dir():
        return [path]
    return sorted(file for file in path.rglob("*") if file.suffix in TEXT_ENDINGS and _is_shown(file, path))


def printable_name(path: Path) -> str:
    """Return the last name of ``path`` as UTF-8 can hold it; a file may have a name in another encoding."""
    return os.fsencode(path.name).decode("utf-8", "replace")


def read_rows(path: Path, on_left_out: Callable[[LeftOut], None] = lambda _: None) -> Iterator[Row]:
    """Read the rows of one file; ``domain`` is each row's own, or the file's name without its ending.

    Args:
        path: a JSONL or Parquet file.
        on_left_out: called for each row that is left out: those that hold images or half a character. Of
            Parquet, where no line can be mended by hand, also those without a text.

    Raises:
        HybridError: the file cannot be read, or a line is not a row; the message names the line.
    """
    if not path.is_file():
        raise HybridError(f"calibration file {path} does not exist")
    for ending in CSV_ENDINGS:
        if path.name.endswith(ending):
            delimiter = ", delimiter='\\t'" if ending == ".tsv" else ""
            script = (
                "import csv, json, sys; [print(json.dumps({'text': row['COLUMN']})) "
                f"for row in csv.DictReader(sys.stdin{delimiter})]"
            )
            raise HybridError(
                f"calibration file {path} is a table in text form ({ending}), which is not read",
                remedy=f"{FORMATS}\n  To convert one, put the name of its column into: "
                f'python -c "{script}" < {path.name} > {path.stem}.jsonl',
            )
    return (_read_parquet if path.suffix == PARQUET_ENDING else read_jsonl)(path, on_left_out)


def read_jsonl(path: str | Path, on_left_out: Callable[[LeftOut], None] = lambda _: None) -> Iterator[Row]:
    """Read the rows of a JSONL file, as :func:`read_rows` does."""
    path = Path(path)
    domain = _domain(path)
    try:
        with _open(path) as handle:
            for number, line in enumerate(handle, 1):
                row = _parse_line(path, number, line, domain)
                if isinstance(row, LeftOut):
                    on_left_out(row)
                else:
                    yield row
    except UnicodeDecodeError as error:
        raise HybridError(
            f"calibration file {path} cannot be read: line {_line_not_utf8(path)} is not UTF-8: {error}",
            remedy=FORMATS,
        ) from error
    except (OSError, EOFError, lzma.LZMAError, zlib.error) as error:
        raise HybridError(f"calibration file {path} cannot be read: {error}") from error


def _read_parquet(path: Path, on_left_out: Callable[[LeftOut], None]) -> Iterator[Row]:
    try:
        parquet: Any = import_module("pyarrow.parquet")
    except ImportError as error:
        raise HybridError(
            f"calibration file {path}: Parquet is read with pyarrow, which is not installed",
            remedy=f"Run: pip install pyarrow. {FORMATS}",
        ) from error
    number, domain = 0, _domain(path)
    try:
        with parquet.ParquetFile(path) as file:
            columns = [name for name in file.schema_arrow.names if name in _COLUMNS]
            if not set(columns) & set(_TEXT_COLUMNS):
                raise HybridError(
                    f"calibration file {path} has no column of rows; it has {', '.join(file.schema_arrow.names)}",
                    remedy=f"Rename the column that holds the text to one of: {', '.join(_TEXT_COLUMNS)}.",
                )
            for batch in file.iter_batches(columns=columns):
                for row in batch.to_pylist():
                    number += 1
                    try:
                        yield {"domain": domain, **parse_row(row)}
                    except ValueError as error:
                        on_left_out(LeftOut(error, domain=_own(row, domain), where=f"{path}: row {number}"))
    except (OSError, ValueError, import_module("pyarrow").ArrowException) as error:
        raise HybridError(
            f"calibration file {path} cannot be read, after {number} rows: {error}", remedy=FORMATS
        ) from error


def _domain(path: Path) -> str:
    name = printable_name(path)
    ending = max((ending for ending in ROW_ENDINGS if name.endswith(ending)), key=len, default="")
    return name.removesuffix(ending)


def _own(row: dict[str, Any], domain: str) -> str:
    own = row.get("domain")
    return own if isinstance(own, str) and own else domain


def is_row_folder(spec: str) -> bool:
    """Whether ``spec`` is a folder that holds JSONL or Parquet files."""
    return path_kind(spec) == "folder" and bool(row_files(Path(spec)))


def read_text(path: Path) -> Iterator[Row]:
    """Read a text file in pieces of at most 32,000 characters, each ended at a paragraph, line or word if
    possible.

    Raises:
        HybridError: the file cannot be read as UTF-8.
    """
    try:
        text = path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise HybridError(f"calibration file {path} cannot be read: {error}", remedy=FORMATS) from error
    except OSError as error:
        raise HybridError(f"calibration file {path} cannot be read: {error}") from error
    while text.strip():
        end = len(text)
        if end > _PIECE:
            ends = (text.rfind(mark, _PIECE // 2, _PIECE) + len(mark) for mark in ("\n\n", "\n", " "))
            end = next((place for place in ends if place > _PIECE // 2), _PIECE)
        yield {"text": text[:end]}
        text = text[end:]


def describe_files(files: Sequence[Path], root: Path) -> dict[str, Any]:
    """Describe files for the manifest: how many, and one SHA-256 over them.

    For a single file it is the file's own SHA-256. For several it is the SHA-256 of the lines ``SHA-256  NAME``
    that ``sha256sum`` prints, with names relative to ``root``, in the order of names.
    """
    if root.is_file():
        return {"sha256": _file_sha256(root)}
    named = sorted((file.relative_to(root).as_posix(), _file_sha256(file)) for file in files)
    lines = [f"{digest}  {name}\n" for name, digest in named]
    listing = os.fsencode("".join(lines))
    return {"files": len(lines), "sha256": sha256(listing).hexdigest()}


def _file_sha256(path: Path) -> str:
    with path.open("rb") as handle:
        return file_digest(handle, "sha256").hexdigest()


def _open(path: Path) -> TextIO:
    # A file that a Windows program wrote may begin with a byte order mark.
    return TextIOWrapper(_open_bytes(path), encoding="utf-8-sig")


def _open_bytes(path: Path) -> Any:
    if path.suffix == ".gz":
        return gzip.open(path)
    return lzma.open(path) if path.suffix == ".xz" else path.open("rb")


def _line_not_utf8(path: Path) -> int:
    """Return the number of the first line that is not UTF-8; text is decoded in blocks, which hide the line."""
    with _open_bytes(path) as handle:
        for number, line in enumerate(handle, 1):
            try:
                line.decode("utf-8")
            except UnicodeDecodeError:
                return number
    raise AssertionError("decoding all lines failed, so decoding one of them does")


def _parse_line(path: Path, number: int, line: str, domain: str) -> Row:
    """Parse a line: a row, or :class:`LeftOut`."""
    where = f"{path}: line {number}"
    if not line.strip():
        raise HybridError(f"{where} is empty", remedy="Remove it.")
    try:
        parsed = json.loads(line)
    except ValueError as error:
        remedy = FORMATS
        if number == 1 and line.lstrip().startswith("["):
            remedy = f"One object a line, not one list: jq -c '.[]' {path.name} > {path.stem}.jsonl"
        raise HybridError(f"{where} is not valid JSON: {error}", remedy=remedy) from error
    except RecursionError as error:
        raise HybridError(f"{where} is nested too deeply", remedy=_ROW_FORM) from error
    try:
        return {"domain": domain, **parse_row(parsed)}
    except LeftOutError as error:
        return LeftOut(error, domain=_own(parsed, domain), where=where)
    except RecursionError as error:
        raise HybridError(f"{where} is nested too deeply", remedy=_ROW_FORM) from error
    except ValueError as error:
        raise HybridError(f"{where} {error}", remedy=_ROW_FORM) from error
