"""Linears in GPTQ's file layout, with torch and without gptqmodel: round, pack, unpack.

What gptqmodel is needed for is choosing the codes of the decoder layers; the output
head and the MTP head are rounded here, and whoever evaluates a checkpoint reads all of
them with :func:`dequantize`.
"""

from ._gptq import BITS, CheckpointFormat, dequantize, pack
from ._rtn import quantize_rtn
from ._words import pack_words

__all__ = ["BITS", "CheckpointFormat", "dequantize", "pack", "pack_words", "quantize_rtn"]
