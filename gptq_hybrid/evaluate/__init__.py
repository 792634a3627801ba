"""How far a quantized checkpoint is from its original, by domain and with intervals."""

from ._scores import DocumentScores

__all__ = ["DocumentScores"]
