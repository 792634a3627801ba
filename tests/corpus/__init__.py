"""Good checkpoints and faulty copies of them, with the expected verdict. Benches use it too: no pytest here."""

from .bases import BASES, Bases
from .case import CorpusCase, Workshop
from .cases import CASES

__all__ = ["BASES", "CASES", "Bases", "CorpusCase", "Workshop"]
