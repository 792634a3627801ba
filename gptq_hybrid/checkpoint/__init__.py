"""What a checkpoint of the hybrid family is: files, headers, layout, formats, index, draft vocabulary.

Imports no torch, gptqmodel, numpy or HTTP library.
"""

from ._checkpoint import CALIBRATION_FILE, INDEX_NAME, MTP_FILE, Checkpoint, is_weight_file
from .draft_vocab_file import (
    DRAFT_VOCAB_FILE,
    DraftVocab,
    find_draft_vocab,
    read_draft_vocab,
    shipped_draft_vocab,
    write_draft_vocab,
)
from .families import family_for, layout_for
from .headers import TensorInfo, read_header
from .json_files import read_json_object
from .layout import Family, FusedModule, LinearSpec, TensorLayout, TensorSpec
from .write import write_index, write_mtp, write_verbatim

__all__ = [
    "CALIBRATION_FILE",
    "DRAFT_VOCAB_FILE",
    "INDEX_NAME",
    "MTP_FILE",
    "Checkpoint",
    "DraftVocab",
    "Family",
    "FusedModule",
    "LinearSpec",
    "TensorInfo",
    "TensorLayout",
    "TensorSpec",
    "family_for",
    "find_draft_vocab",
    "is_weight_file",
    "layout_for",
    "read_draft_vocab",
    "read_header",
    "read_json_object",
    "shipped_draft_vocab",
    "write_draft_vocab",
    "write_index",
    "write_mtp",
    "write_verbatim",
]
