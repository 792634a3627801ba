"""Was every module quantized well? Read and write ``quant_log.csv``, name what stands out, draw it.

Works from the log alone, gptqmodel's own as far as its columns go. Needs neither a GPU nor gptqmodel.
"""

from ._flags import FLAGS, STARVED_BELOW, find_flags, find_outliers
from ._plot import plot_losses
from ._record import ModuleRecord
from ._report import as_json, count_flags, kinds_table, summary
from .quant_log import LOG_NAME, LossLog, extend_log, read_log, write_log

__all__ = [
    "FLAGS",
    "LOG_NAME",
    "STARVED_BELOW",
    "LossLog",
    "ModuleRecord",
    "as_json",
    "count_flags",
    "extend_log",
    "find_flags",
    "find_outliers",
    "kinds_table",
    "plot_losses",
    "read_log",
    "summary",
    "write_log",
]
