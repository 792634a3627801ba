"""Rules, and what they report."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from enum import StrEnum
from functools import cached_property
from typing import TYPE_CHECKING, Any, TypeVar

if TYPE_CHECKING:
    from gptq_hybrid.checkpoint import Checkpoint, TensorLayout

    from .vllm_releases import VllmRelease

_T = TypeVar("_T")


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
class Fault:
    """One instance of what a rule looks for; what it leaves None comes from the rule."""

    message: str
    tensor: str | None = None
    file: str | None = None
    remedy: str | None = None
    severity: Severity | None = None


@dataclass(frozen=True)
class Inspection:
    """What a rule gets to see.

    Attributes:
        checkpoint: config, index, headers, and reads of values.
        layout: what a checkpoint of this config must hold.
        mtp: whether it is to draft with its MTP head.
        vllm: the release it is to be served by; None where none was named and none is installed.
        plugin: whether that vLLM runs with this distribution's plugin.
        expected_prefix: what ``config.json`` would have the layers called, where they are called otherwise
            (``layout`` then has the names found).
    """

    checkpoint: Checkpoint
    layout: TensorLayout
    mtp: bool = True
    vllm: VllmRelease | None = None
    plugin: bool = False
    expected_prefix: str | None = None
    _found: dict[str, Any] = field(default_factory=dict, repr=False, compare=False)

    def once(self, key: str, find: Callable[[Inspection], _T]) -> _T:
        """``find(self)``, worked out once for all rules that ask under the same ``key``."""
        if key not in self._found:
            self._found[key] = find(self)
        found: _T = self._found[key]
        return found

    @cached_property
    def mtp_names(self) -> frozenset[str]:
        """Names of the MTP head's dense tensors."""
        return frozenset(spec.name for spec in self.layout.mtp)


Look = Callable[[Inspection], Iterable[Fault]]


@dataclass(frozen=True, slots=True)
class Rule:
    """A check.

    Attributes:
        id: stable, kebab-case; findings carry it.
        scope: groups rules that run together (``"mtp"``: whatever drafting with the head needs).
        severity: of a finding that does not set its own.
        explanation: why it matters, for people who have never met it.
        remedy: what to do; ``{path}`` stands for the checkpoint.
        look: yields a :class:`Fault` for each instance found.
    """

    id: str
    scope: str
    severity: Severity
    explanation: str
    remedy: str
    look: Look

    def findings(self, see: Inspection) -> Iterator[Finding]:
        """What this rule finds, with severity and remedy filled in."""
        for fault in self.look(see):
            remedy = self.remedy if fault.remedy is None else fault.remedy
            yield Finding(
                self.id,
                fault.severity or self.severity,
                fault.message,
                remedy.replace("{path}", see.checkpoint.location),
                fault.tensor,
                fault.file,
            )


def rule(
    id: str, *, scope: str, explanation: str, remedy: str, severity: Severity = Severity.ERROR
) -> Callable[[Look], Rule]:
    """Turn a function that yields faults into a :class:`Rule`."""
    return lambda look: Rule(id, scope, severity, explanation, remedy, look)


def some(names: Iterable[str], limit: int = 3) -> str:
    """The first few names, and how many more there are."""
    listed = list(names)
    head = ", ".join(listed[:limit])
    return head if len(listed) <= limit else f"{head} and {len(listed) - limit} more"
