"""Everything that touches gptqmodel below its public API, and nothing else.

Each function looks at the thing it is about to use and raises
:class:`IncompatibleError` when upstream has moved, rather than guess.
"""

from ._gptqmodel import IncompatibleError, prepare_environment, supports_shared_input_tags, without_stray_logs
from ._records import ModuleRecord, record_modules

__all__ = [
    "IncompatibleError",
    "ModuleRecord",
    "prepare_environment",
    "record_modules",
    "supports_shared_input_tags",
    "without_stray_logs",
]
