"""Calibration rows and evaluation documents: where they come from, and how they become token ids."""

from ._documents import Document, EncodedDocument, encode_documents, load_documents
from ._files import jsonl_files, read_jsonl
from ._load import Calibration, load_calibration
from ._manifest import rows_sha256
from ._mix import mix_names
from ._pack import DEFAULT_PACK
from ._refuse import refuse_bad_calibration, refuse_bad_documents
from ._sources import BUILTIN_SOURCES, DEFAULT_CALIBRATION, load_rows
from .encode import encode_rows
from .rows import LeftOut

__all__ = [
    "BUILTIN_SOURCES",
    "DEFAULT_CALIBRATION",
    "DEFAULT_PACK",
    "Calibration",
    "Document",
    "EncodedDocument",
    "LeftOut",
    "encode_documents",
    "encode_rows",
    "jsonl_files",
    "load_calibration",
    "load_documents",
    "load_rows",
    "mix_names",
    "read_jsonl",
    "refuse_bad_calibration",
    "refuse_bad_documents",
    "rows_sha256",
]
