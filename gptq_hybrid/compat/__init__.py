"""Everything that touches gptqmodel below its public API, and nothing else.

Each function looks at the thing it is about to use and raises
:class:`IncompatibleError` when upstream has moved, rather than guess.
"""

from ._gptaq import gptaq_config, keep_log, refuse_batches
from ._gptqmodel import IncompatibleError, prepare_environment, supports_shared_input_tags, without_stray_logs
from ._module_record import ModuleRecord
from ._records import record_modules

__all__ = [
    "IncompatibleError",
    "ModuleRecord",
    "gptaq_config",
    "keep_log",
    "prepare_environment",
    "record_modules",
    "refuse_batches",
    "supports_shared_input_tags",
    "without_stray_logs",
]
