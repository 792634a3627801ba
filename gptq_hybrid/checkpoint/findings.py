"""What a rule reports."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from enum import StrEnum
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from ._checkpoint import Checkpoint
    from .layout import TensorLayout


class Severity(StrEnum):
    """``ERROR``: will not serve as asked. ``WARNING``: serves, with something lost or odd."""

    ERROR = "error"
    WARNING = "warning"


@dataclass(frozen=True, slots=True)
class Finding:
    """One thing found wrong. ``tensor`` and ``file`` name where; ``remedy`` what to do."""

    rule: str
    severity: Severity
    message: str
    remedy: str
    tensor: str | None = None
    file: str | None = None


@dataclass(frozen=True, slots=True)
class Rule:
    """A check. ``scope`` groups rules that run together (``"mtp"``: whatever serving with MTP needs)."""

    id: str
    scope: str
    explanation: str
    run: Callable[[Checkpoint, TensorLayout], Iterable[Finding]]
