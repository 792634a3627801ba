"""The contract of a calibration source. Sources themselves live in ``gptq_hybrid.calibration``."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True, slots=True)
class CalibrationSource:
    """A named source of calibration rows.

    ``matches`` decides whether a ``--calibration`` value belongs to it. ``load``
    takes that value, the number of rows wanted and a seed, and returns at most
    that many rows: ``{"messages": [{"role", "content"}, …]}`` or ``{"text": …}``.
    """

    name: str
    matches: Callable[[str], bool]
    load: Callable[[str, int, int], list[dict[str, Any]]]
