"""Which modules cost most when they are quantized: each by itself, measured at the output."""

from ._budget import DENSE, Choice, budget_bytes, choose_bits, recipe_bits
from ._page import write_sensitivity_page
from ._plot import plot_sensitivity
from ._recipe import refuse_base, write_recipe
from ._result import (
    KindSum,
    Measured,
    Module,
    Sensitivity,
    Together,
    as_json,
    read_sensitivity,
    summarize_scan,
    write_sensitivity,
)
from ._scan import BITS, Scan, ScanRequest, scan
from ._table import rank_modules, sensitivity_summary, sensitivity_tables
from ._units import Unit, list_units

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
    "as_json",
    "budget_bytes",
    "choose_bits",
    "list_units",
    "plot_sensitivity",
    "rank_modules",
    "read_sensitivity",
    "recipe_bits",
    "refuse_base",
    "scan",
    "sensitivity_summary",
    "sensitivity_tables",
    "summarize_scan",
    "write_recipe",
    "write_sensitivity",
    "write_sensitivity_page",
]
