"""Codes of a packed checkpoint rounded again; group scales and norm gains trained to the original's output."""

from ._parameters import Parameters
from ._passes import TunedStack
from ._rounding import AlignRequest, align
from ._run import Tuned, TuneRequest, tune
from ._write import REPORT, write_tuned

__all__ = [
    "REPORT",
    "AlignRequest",
    "Parameters",
    "TuneRequest",
    "Tuned",
    "TunedStack",
    "align",
    "tune",
    "write_tuned",
]
