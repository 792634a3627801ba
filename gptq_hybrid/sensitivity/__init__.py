"""Which modules cost most when they are quantized: each by itself, measured at the output."""

from ._budget import DENSE, Choice, base_bits, budget_bytes, choose
from ._json import read_sensitivity, write_sensitivity
from ._plot import plot_sensitivity
from ._recipe import refuse_base, write_recipe
from ._result import KindSum, Measured, Module, Sensitivity, Together, summarize_scan
from ._scan import BITS, Scan, ScanRequest, scan
from ._table import ranked, tables
from ._units import Unit, units_of

__all__ = [
    "BITS",
    "DENSE",
    "Choice",
    "KindSum",
    "Measured",
    "Module",
    "Scan",
    "ScanRequest",
    "Sensitivity",
    "Together",
    "Unit",
    "base_bits",
    "budget_bytes",
    "choose",
    "plot_sensitivity",
    "ranked",
    "read_sensitivity",
    "refuse_base",
    "scan",
    "summarize_scan",
    "tables",
    "units_of",
    "write_recipe",
    "write_sensitivity",
]
