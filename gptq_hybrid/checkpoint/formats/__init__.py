"""Quantization formats: how each stores a linear, and how its config says which linears those are.

One module a format. ``stored`` looks at tensors alone, ``declares`` at the config alone; rules compare.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ._base import FLOAT_DTYPES, Format, Stored, dense_or_none, vllm_name
from .auto_round import AUTO_ROUND
from .awq import AWQ
from .compressed_tensors import COMPRESSED_TENSORS
from .fp8 import FP8
from .gptq import GPTQ
from .unquantized import UNQUANTIZED

FORMATS: tuple[Format, ...] = (GPTQ, AUTO_ROUND, AWQ, COMPRESSED_TENSORS, FP8)

__all__ = [
    "AUTO_ROUND",
    "AWQ",
    "COMPRESSED_TENSORS",
    "FLOAT_DTYPES",
    "FORMATS",
    "FP8",
    "GPTQ",
    "UNQUANTIZED",
    "Format",
    "Stored",
    "dense_or_none",
    "format_of",
    "stored",
    "vllm_name",
]


def format_of(quantization_config: Mapping[str, Any] | None) -> Format | None:
    """The format a ``quantization_config`` declares; None for one that is not known here."""
    if quantization_config is None:
        return UNQUANTIZED
    method = str(quantization_config.get("quant_method", "")).lower()
    return next((known for known in FORMATS if method in known.methods), None)


def stored(tensors: Mapping[str, Any], module: str) -> Stored | None:
    """How ``module`` is stored, going by the names, dtypes and shapes of its tensors; None if not at all.

    A form whose tensors are not all there counts as absent, so that the rest can be named as missing.
    """
    for known in FORMATS:
        found = known.stored(tensors, module)
        if found is not None:
            return found
    return dense_or_none(tensors, module)
