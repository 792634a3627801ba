"""Was every module quantized well? Reading ``quant_log.csv``, naming what stands out, drawing it.

Works from the log alone, gptqmodel's own included as far as its columns go; needs neither a GPU nor gptqmodel.
"""

from ._flags import FLAGS, STARVED_BELOW, flags_of, outliers
from ._json import as_json
from ._modules import ModuleLoss
from ._plot import plot_losses
from ._table import kinds_table, summary
from .columns import LOG_NAME, LossLog, read_log

__all__ = [
    "FLAGS",
    "LOG_NAME",
    "STARVED_BELOW",
    "LossLog",
    "ModuleLoss",
    "as_json",
    "flags_of",
    "kinds_table",
    "outliers",
    "plot_losses",
    "read_log",
    "summary",
]
