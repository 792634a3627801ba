"""Good checkpoints and faulty copies of them, with the verdict expected; no pytest in here, benches use it too."""

from .bases import BASES, Bases
from .case import CorpusCase, Workshop
from .cases import CASES

__all__ = ["BASES", "CASES", "Bases", "CorpusCase", "Workshop"]
