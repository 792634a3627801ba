"""The checkpoint format of the hybrid family: layout, headers, index, rules.

Light by design: no torch, no gptqmodel, no numpy at import.
"""

from ._atomic import building_directory, write_json_atomic, write_text_atomic
from ._check import check_mtp, check_quantized, run_rules
from ._checkpoint import INDEX_NAME, MTP_FILE, Checkpoint, read_json_object
from ._head import find_mtp, write_index, write_mtp
from ._repair import Repair, repair
from ._safetensors import TensorInfo, read_header, write_verbatim
from .errors import CheckpointError, HybridError, UnsupportedArchitectureError
from .findings import Finding, Rule, Severity
from .hookspecs import hookimpl
from .layout import Family, FusedModule, LinearSpec, TensorLayout, TensorSpec
from .plugins import family_of, get_plugin_manager, layout_for

__all__ = [
    "INDEX_NAME",
    "MTP_FILE",
    "Checkpoint",
    "CheckpointError",
    "Family",
    "Finding",
    "FusedModule",
    "HybridError",
    "LinearSpec",
    "Repair",
    "Rule",
    "Severity",
    "TensorInfo",
    "TensorLayout",
    "TensorSpec",
    "UnsupportedArchitectureError",
    "building_directory",
    "check_mtp",
    "check_quantized",
    "family_of",
    "find_mtp",
    "get_plugin_manager",
    "hookimpl",
    "layout_for",
    "read_header",
    "read_json_object",
    "repair",
    "run_rules",
    "write_index",
    "write_json_atomic",
    "write_mtp",
    "write_text_atomic",
    "write_verbatim",
]
