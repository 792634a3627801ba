"""A BF16 or FP16 original: no ``quantization_config``."""

from __future__ import annotations

from ._base import Format
from ._modules import Built

UNQUANTIZED = Format(
    "unquantized",
    frozenset(),
    frozenset(),
    (),
    lambda tensors, module: None,
    lambda config, module: Built(False),
    lambda config, built, linear: None,
    lambda config, modules: dict(config),
)
