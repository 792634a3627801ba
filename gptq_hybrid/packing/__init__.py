"""Linears in GPTQ's file layout, with torch alone: round, pack, unpack.

Needs neither vLLM nor gptqmodel. gptqmodel chooses the codes of the decoder layers; the output head and the MTP
head are rounded here, by the writer and by the plugin. Whoever reads a checkpoint's weights uses
:func:`dequantize`.
"""

from .gptq_layout import (
    BITS,
    CheckpointFormat,
    dequantize,
    dequantize_symmetric,
    natural_g_idx,
    pack,
)
from .rounding import SEARCH, quantize_rtn
from .words import pack_words, unpack_words

__all__ = [
    "BITS",
    "SEARCH",
    "CheckpointFormat",
    "dequantize",
    "dequantize_symmetric",
    "natural_g_idx",
    "pack",
    "pack_words",
    "quantize_rtn",
    "unpack_words",
]
