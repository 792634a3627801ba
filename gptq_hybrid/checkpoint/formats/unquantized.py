"""A BF16 or FP16 original: no ``quantization_config``."""

from __future__ import annotations

from ._base import Format

UNQUANTIZED = Format(
    "unquantized",
    frozenset(),
    frozenset(),
    (),
    lambda tensors, module: None,
    lambda config, module: False,
    lambda config, linear: None,
    lambda config, modules: dict(config),
)
