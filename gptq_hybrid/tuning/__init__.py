"""Train the group scales and norm gains of a packed checkpoint to give the original's distributions."""

from ._parameters import Parameters
from ._passes import TunedStack

__all__ = ["Parameters", "TunedStack"]
