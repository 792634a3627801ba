"""The contract of a calibration source. Sources themselves live in ``gptq_hybrid.calibration``."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

# Saved with the checkpoint: what it was calibrated on.
CALIBRATION_FILE = "calibration.json"


@dataclass(frozen=True, slots=True)
class CalibrationSource:
    """A named source of calibration rows.

    ``matches`` decides whether a ``--calibration`` value belongs to it. ``load``
    takes that value, the most rows that could be wanted and a seed, and gives at
    most that many rows in an order decided by the seed:
    ``{"messages": [{"role", "content"}, …]}`` or ``{"text": …}``, with or without
    ``domain`` and ``licence``. A lazy iterable is read only as far as it is needed.

    ``describe``, if given, says what the calibration manifest should note about a
    value: a mapping for JSON, such as the commit of a data set, its licence, or
    the SHA-256 of a file. It is called after ``load`` and holds no path.
    """

    name: str
    matches: Callable[[str], bool]
    load: Callable[[str, int, int], Iterable[dict[str, Any]]]
    describe: Callable[[str], dict[str, Any]] | None = None
