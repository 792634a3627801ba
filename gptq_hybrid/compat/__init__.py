"""Everything that touches gptqmodel below its public API, and nothing else.

Each function looks at the thing it is about to use and raises
:class:`IncompatibleError` when upstream has moved, rather than guess.
"""

from ._faster import faster
from ._forward import ForwardCounts, mixer_once
from ._gptaq import gptaq_config, keep_log, refuse_batches
from ._gptqmodel import IncompatibleError, prepare_environment, supports_shared_input_tags, without_stray_logs
from ._hessian import Products, gram, hessian_products
from ._module_record import ModuleRecord
from ._records import record_modules
from ._resume import RunInterruptedError, checkpoint_config, finished_layers, resumable, why_not_resumable
from ._solver import block_kernel, swift_solver

__all__ = [
    "ForwardCounts",
    "IncompatibleError",
    "ModuleRecord",
    "Products",
    "RunInterruptedError",
    "block_kernel",
    "checkpoint_config",
    "faster",
    "finished_layers",
    "gptaq_config",
    "gram",
    "hessian_products",
    "keep_log",
    "mixer_once",
    "prepare_environment",
    "record_modules",
    "refuse_batches",
    "resumable",
    "supports_shared_input_tags",
    "swift_solver",
    "why_not_resumable",
    "without_stray_logs",
]
