"""Everything that touches gptqmodel below its public API, and nothing else.

Each function looks at the thing it is about to use and raises :class:`IncompatibleError` when gptqmodel has
moved, rather than guess. Each module says at its top what it changes, why, in which versions, how it checks
what it changes, and when the change may go.
"""

from ._abort import told_before_abort
from ._damping import module_name
from ._gptaq import gptaq_config, keep_log, refuse_batches
from ._records import record_modules
from ._resume import (
    RunInterruptedError,
    checkpoint_config,
    finished_layers,
    resumable,
    why_not_resumable,
)
from .versions import (
    IncompatibleError,
    installed_version,
    moved,
    prepare_environment,
    supports_shared_input_tags,
    without_stray_logs,
)

__all__ = [
    "IncompatibleError",
    "RunInterruptedError",
    "checkpoint_config",
    "finished_layers",
    "gptaq_config",
    "installed_version",
    "keep_log",
    "module_name",
    "moved",
    "prepare_environment",
    "record_modules",
    "refuse_batches",
    "resumable",
    "supports_shared_input_tags",
    "told_before_abort",
    "why_not_resumable",
    "without_stray_logs",
]
