"""Calibration rows and evaluation documents: where they come from and how they become token ids."""

from ._documents import Document, EncodedDocument, encode_documents, load_documents
from ._encode import encode_rows
from ._sources import BUILTIN_SOURCES, DEFAULT_DATASET, load_rows

__all__ = [
    "BUILTIN_SOURCES",
    "DEFAULT_DATASET",
    "Document",
    "EncodedDocument",
    "encode_documents",
    "encode_rows",
    "load_documents",
    "load_rows",
]
