"""Train the group scales and norm gains of a packed checkpoint to give the original's distributions."""

from ._parameters import Parameters
from ._passes import TunedStack
from ._run import Tuned, TuneRequest, tune
from ._write import REPORT, write_tuned

__all__ = ["REPORT", "Parameters", "TuneRequest", "Tuned", "TunedStack", "tune", "write_tuned"]
