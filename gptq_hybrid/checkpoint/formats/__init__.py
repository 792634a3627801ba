"""Quantization formats: how each stores a linear, and how its config says which linears those are.

Each format has a module. ``stored`` looks only at tensors, ``builds`` only at the config: it says what vLLM builds
for a module. The rules of the doctor compare the two.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from gptq_hybrid.checkpoint.quantization import quant_method

from ._base import FLOAT_DTYPES, WORDS, Expected, Format, Stored, dense_or_none, vllm_name
from ._modules import FUSED, Built, Module, module_of
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
    "FUSED",
    "GPTQ",
    "UNQUANTIZED",
    "WORDS",
    "Built",
    "Expected",
    "Format",
    "Module",
    "Stored",
    "declared_format",
    "dense_or_none",
    "module_of",
    "stored",
    "vllm_name",
]


def declared_format(quantization_config: Mapping[str, Any] | None) -> Format | None:
    """Return the format a ``quantization_config`` declares; None if it is unknown to this package."""
    method = quant_method(quantization_config)
    if not method:  # without a method vLLM builds everything plain
        return UNQUANTIZED
    return next((declared for declared in FORMATS if method in declared.methods), None)


def stored(tensors: Mapping[str, Any], module: str) -> Stored | None:
    """Recognise how ``module`` is stored by the names, dtypes and shapes of its tensors; None if not at all.

    A form that lacks one of its tensors counts as absent, so that a rule can name what is missing.
    """
    for candidate in FORMATS:
        result = candidate.stored(tensors, module)
        if result is not None:
            return result
    return dense_or_none(tensors, module)
