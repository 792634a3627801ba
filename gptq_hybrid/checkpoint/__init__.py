"""The checkpoint format of the hybrid family: layout, headers, index, rules.

Light by design: no torch, no gptqmodel, no numpy at import.
"""

from ._atomic import building_directory, write_json_atomic, write_text_atomic
from ._check import ActOrder, check, check_act_order, check_mtp, check_quantized, inspect, run_rules
from ._checkpoint import INDEX_NAME, MTP_FILE, Checkpoint
from ._draft_vocab import (
    DRAFT_VOCAB_FILE,
    DraftVocab,
    find_draft_vocab,
    read_draft_vocab,
    shipped_draft_vocab,
    write_draft_vocab,
)
from ._head import find_mtp, write_index, write_mtp
from ._json import read_json_object
from ._report import Report
from ._safetensors import TensorInfo, read_header
from ._write import write_verbatim
from .errors import CheckpointError, HybridError, TransferError, UnsupportedArchitectureError
from .findings import Fault, Finding, Inspection, Rule, Severity, rule
from .hookspecs import hookimpl
from .layout import Family, FusedModule, LinearSpec, TensorLayout, TensorSpec
from .plugins import check_rules, family_of, get_plugin_manager, layout_for
from .repair import Repair, repair
from .vllm_versions import VllmRelease, installed_vllm

__all__ = [
    "DRAFT_VOCAB_FILE",
    "INDEX_NAME",
    "MTP_FILE",
    "ActOrder",
    "Checkpoint",
    "CheckpointError",
    "DraftVocab",
    "Family",
    "Fault",
    "Finding",
    "FusedModule",
    "HybridError",
    "Inspection",
    "LinearSpec",
    "Repair",
    "Report",
    "Rule",
    "Severity",
    "TensorInfo",
    "TensorLayout",
    "TensorSpec",
    "TransferError",
    "UnsupportedArchitectureError",
    "VllmRelease",
    "building_directory",
    "check",
    "check_act_order",
    "check_mtp",
    "check_quantized",
    "check_rules",
    "family_of",
    "find_draft_vocab",
    "find_mtp",
    "get_plugin_manager",
    "hookimpl",
    "inspect",
    "installed_vllm",
    "layout_for",
    "read_draft_vocab",
    "read_header",
    "read_json_object",
    "repair",
    "rule",
    "run_rules",
    "shipped_draft_vocab",
    "write_draft_vocab",
    "write_index",
    "write_json_atomic",
    "write_mtp",
    "write_text_atomic",
    "write_verbatim",
]
