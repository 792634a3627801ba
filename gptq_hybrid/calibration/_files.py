"""Rows of local files: JSONL (plain, .gz or .xz) and text documents, single or in a folder."""

from __future__ import annotations

import gzip
import json
import lzma
from collections.abc import Iterator, Sequence
from hashlib import file_digest, sha256
from pathlib import Path
from typing import Any, Literal, TextIO

from gptq_hybrid.common.errors import HybridError

from .rows import Row, parse_row

JSONL_ENDINGS = (".jsonl", ".json", ".jsonl.gz", ".jsonl.xz")
TEXT_ENDINGS = (".txt", ".md", ".rst", ".text")
FILE_ENDINGS = JSONL_ENDINGS + TEXT_ENDINGS
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


def jsonl_files(path: Path) -> list[Path]:
    """Return ``path`` itself, or the JSONL files of a folder, sorted by name."""
    if not path.is_dir():
        return [path]
    return sorted(file for file in path.iterdir() if file.is_file() and file.name.endswith(JSONL_ENDINGS))


def text_files(path: Path) -> list[Path]:
    """Return ``path`` itself, or the text files below a folder, at any depth, sorted by path."""
    if not path.is_dir():
        return [path]
    return sorted(file for file in path.rglob("*") if file.is_file() and file.suffix in TEXT_ENDINGS)


def read_jsonl(path: Path) -> Iterator[Row]:
    """Read the rows of one file; ``domain`` is each row's own, or the file's name without its ending.

    Raises:
        HybridError: the file cannot be read, or a line is not a row; the message names the line.
    """
    if not path.is_file():
        raise HybridError(f"calibration file {path} does not exist")
    domain = path.name
    for ending in sorted(JSONL_ENDINGS, key=len, reverse=True):
        domain = domain.removesuffix(ending)
    try:
        with _open(path) as handle:
            for number, line in enumerate(handle, 1):
                yield {"domain": domain, **_parse_line(path, number, line)}
    except (OSError, EOFError, UnicodeDecodeError, lzma.LZMAError) as error:
        raise HybridError(f"calibration file {path} cannot be read: {error}") from error


def is_jsonl_folder(spec: str) -> bool:
    """Whether ``spec`` is a folder that holds JSONL files."""
    return path_kind(spec) == "folder" and bool(jsonl_files(Path(spec)))


def read_text(path: Path) -> Iterator[Row]:
    """Read a text file in pieces of at most 32,000 characters, each ended at a paragraph, line or word if
    possible.

    Raises:
        HybridError: the file cannot be read as UTF-8.
    """
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
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
    return {"files": len(lines), "sha256": sha256("".join(lines).encode()).hexdigest()}


def _file_sha256(path: Path) -> str:
    with path.open("rb") as handle:
        return file_digest(handle, "sha256").hexdigest()


def _open(path: Path) -> TextIO:
    if path.suffix == ".gz":
        return gzip.open(path, "rt", encoding="utf-8")
    if path.suffix == ".xz":
        return lzma.open(path, "rt", encoding="utf-8")
    return path.open(encoding="utf-8")


def _parse_line(path: Path, number: int, line: str) -> Row:
    if not line.strip():
        raise HybridError(f"{path}: line {number} is empty", remedy="Remove it.")
    try:
        parsed = json.loads(line)
    except ValueError as error:
        raise HybridError(f"{path}: line {number} is not valid JSON: {error}") from error
    try:
        return parse_row(parsed)
    except ValueError as error:
        raise HybridError(
            f"{path}: line {number} {error}", remedy='A row is {"messages": [...]} or {"text": "..."}.'
        ) from error
