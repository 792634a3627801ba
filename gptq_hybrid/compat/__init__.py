"""Everything that touches gptqmodel below its public API, and nothing else.

Each function looks at the thing it is about to use and raises
:class:`IncompatibleError` when upstream has moved, rather than guess.
"""

from ._faster import faster
from ._forward import ForwardCounts, mixer_once, room_on_gpu
from ._gptaq import gptaq_config, keep_log, refuse_batches
from ._gptqmodel import IncompatibleError, prepare_environment, supports_shared_input_tags, without_stray_logs
from ._hessian import Products, gram, hessian_products
from ._inverse import direct_inverse
from ._module_record import ModuleRecord
from ._moves import pinned_layers
from ._packing import gpu_packing
from ._records import record_modules
from ._resume import RunInterruptedError, checkpoint_config, finished_layers, resumable, why_not_resumable
from ._search import swift_search
from ._solver import block_kernel, swift_solver

__all__ = [
    "ForwardCounts",
    "IncompatibleError",
    "ModuleRecord",
    "Products",
    "RunInterruptedError",
    "block_kernel",
    "checkpoint_config",
    "direct_inverse",
    "faster",
    "finished_layers",
    "gptaq_config",
    "gpu_packing",
    "gram",
    "hessian_products",
    "keep_log",
    "mixer_once",
    "pinned_layers",
    "prepare_environment",
    "record_modules",
    "refuse_batches",
    "resumable",
    "room_on_gpu",
    "supports_shared_input_tags",
    "swift_search",
    "swift_solver",
    "why_not_resumable",
    "without_stray_logs",
]
