"""Rules, what they look at, and what they report."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from enum import StrEnum
from functools import cached_property
from typing import Any, TypeVar

from gptq_hybrid.checkpoint import Checkpoint, Family, TensorLayout

from .deep import DeepReading
from .vllm_releases import VllmRelease

_T = TypeVar("_T")


class Severity(StrEnum):
    """``ERROR``: will not serve as requested. ``WARNING``: serves, with something lost or odd."""

    ERROR = "error"
    WARNING = "warning"


@dataclass(frozen=True, slots=True)
class Finding:
    """One thing that is wrong: what, where (``tensor``, ``file``), and what to do (``remedy``)."""

    rule: str
    severity: Severity
    message: str
    remedy: str
    tensor: str | None = None
    file: str | None = None


@dataclass(frozen=True, slots=True)
class Fault:
    """What a rule yields: one instance of what it looks for.

    ``remedy`` and ``severity`` are the rule's own unless set here.
    """

    message: str
    tensor: str | None = None
    file: str | None = None
    remedy: str | None = None
    severity: Severity | None = None


@dataclass(frozen=True)
class Inspection:
    """What a rule looks at.

    Attributes:
        checkpoint: config, index, headers, and reads of values.
        family: the family that recognises the config.
        layout: what a checkpoint of this config must hold, under the names that it uses.
        mtp: whether it is to draft with its MTP head.
        vllm: the release that is to serve it; None where none was named and none is installed.
        plugin: whether that vLLM runs with this distribution's plugin.
        deep: what a reading of every byte came to; None for a check in samples.
        expected_prefix: the prefix that ``config.json`` implies for the layers, if the tensors have another.
    """

    checkpoint: Checkpoint
    family: Family
    layout: TensorLayout
    mtp: bool = True
    vllm: VllmRelease | None = None
    plugin: bool = False
    expected_prefix: str | None = None
    deep: DeepReading | None = None
    _results: dict[str, Any] = field(default_factory=dict, repr=False, compare=False)

    def once(self, key: str, compute: Callable[[Inspection], _T]) -> _T:
        """Return ``compute(self)``, computed once for all rules that use the same ``key``."""
        if key not in self._results:
            self._results[key] = compute(self)
        result: _T = self._results[key]
        return result

    @property
    def drafting(self) -> bool:
        """Whether it is to draft with its MTP head, and its config declares one."""
        return self.mtp and bool(self.layout.mtp)

    def older_than(self, release: str) -> bool:
        """Whether a vLLM older than ``release`` is to serve it; False for no particular vLLM."""
        return self.vllm is not None and not self.vllm.at_least(release)

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
        scope: groups rules that run together, such as ``"mtp"``: all that drafting with the head needs.
        severity: of a fault that does not set its own.
        explanation: why it matters, for people who have never met it.
        remedy: what to do; ``{path}`` stands for the checkpoint.
        look: yields a :class:`Fault` for each instance.
    """

    id: str
    scope: str
    severity: Severity
    explanation: str
    remedy: str
    look: Look

    def findings(self, inspection: Inspection) -> Iterator[Finding]:
        """Run the rule; fill in severity and remedy."""
        for fault in self.look(inspection):
            remedy = self.remedy if fault.remedy is None else fault.remedy
            yield Finding(
                self.id,
                fault.severity or self.severity,
                fault.message,
                remedy.replace("{path}", inspection.checkpoint.location),
                fault.tensor,
                fault.file,
            )


def rule(
    id: str, *, scope: str, explanation: str, remedy: str, severity: Severity = Severity.ERROR
) -> Callable[[Look], Rule]:
    """Turn a function that yields faults into a :class:`Rule`; its attributes say what the arguments mean."""
    return lambda look: Rule(id, scope, severity, explanation, remedy, look)


def some(names: Iterable[str], limit: int = 3) -> str:
    """Join the first few names, and say how many more there are."""
    listed = list(names)
    head = ", ".join(listed[:limit])
    return head if len(listed) <= limit else f"{head} and {len(listed) - limit} more"
