"""Calibration rows: where they come from and how they become token ids."""

from ._encode import encode_rows
from ._sources import BUILTIN_SOURCES, DEFAULT_DATASET, load_rows

__all__ = ["BUILTIN_SOURCES", "DEFAULT_DATASET", "encode_rows", "load_rows"]
