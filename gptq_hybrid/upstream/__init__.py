"""Everything that touches gptqmodel below its public API, and nothing else.

Each function looks at the thing it is about to use and raises
:class:`IncompatibleError` when upstream has moved, rather than guess.
"""

from ._gptaq import gptaq_config, keep_log, refuse_batches
from ._module_record import ModuleRecord
from ._records import record_modules
from ._resume import (
    RunInterruptedError,
    checkpoint_config,
    finished_layers,
    resumable,
    why_not_resumable,
)
from .gptqmodel import (
    IncompatibleError,
    prepare_environment,
    supports_shared_input_tags,
    without_stray_logs,
)

__all__ = [
    "IncompatibleError",
    "ModuleRecord",
    "RunInterruptedError",
    "checkpoint_config",
    "finished_layers",
    "gptaq_config",
    "keep_log",
    "prepare_environment",
    "record_modules",
    "refuse_batches",
    "resumable",
    "supports_shared_input_tags",
    "why_not_resumable",
    "without_stray_logs",
]
