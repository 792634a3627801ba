"""The outcome of a check."""

from __future__ import annotations

from dataclasses import dataclass, field
from math import prod
from typing import Any, Literal

from gptq_hybrid.checkpoint import Checkpoint, formats, layout_for
from gptq_hybrid.checkpoint.formats import declared_format
from gptq_hybrid.common.errors import HybridError

from .findings import Finding, Severity
from .vllm_releases import VllmRelease

Verdict = Literal["serves", "faulty", "unreadable"]


@dataclass(frozen=True)
class Report:
    """The outcome of a check.

    Attributes:
        path: the checkpoint as the caller named it: folder, hub id or URL.
        findings: errors first; empty for a checkpoint in order.
        verdict: ``"serves"`` without errors, otherwise ``"faulty"``; ``"unreadable"`` if it could not be checked.
        vllm: the release it was checked against, or None.
        mtp: whether drafting with the MTP head was part of the check.
        plugin: whether vLLM was taken to run with this distribution's plugin.
        format: name of the quantization format; None for an unknown one.
        bytes_read: bytes of files that were read.
        packed: share of the parameters of the language model's linears, its head's among them, that is stored
            quantized.
        requests: number of requests to a server; of reads, for a local folder.
        checkpoint: the open checkpoint, for further questions; None where unreadable.
    """

    path: str
    findings: tuple[Finding, ...]
    verdict: Verdict
    vllm: str | None = None
    mtp: bool = True
    plugin: bool = False
    format: str | None = None
    bytes_read: int = 0
    packed: float = 0.0
    requests: int = 0
    checkpoint: Checkpoint | None = field(default=None, repr=False, compare=False)

    @classmethod
    def of(
        cls,
        checkpoint: Checkpoint,
        findings: list[Finding],
        *,
        mtp: bool,
        vllm: VllmRelease | None,
        plugin: bool = False,
    ) -> Report:
        """Make the report of a checkpoint that could be read."""
        declared = declared_format(checkpoint.quantization_config)
        faulty = any(finding.severity is Severity.ERROR for finding in findings)
        return cls(
            path=checkpoint.location,
            findings=tuple(findings),
            verdict="faulty" if faulty else "serves",
            vllm=None if vllm is None else str(vllm),
            mtp=mtp,
            plugin=plugin,
            format=None if declared is None else declared.name,
            bytes_read=checkpoint.files.reads.bytes,
            packed=_packed_share(checkpoint),
            requests=checkpoint.files.reads.requests,
            checkpoint=checkpoint,
        )

    @classmethod
    def unreadable(cls, path: str, error: HybridError, vllm: VllmRelease | None) -> Report:
        """Make the report of something that is no checkpoint, or cannot be reached."""
        remedy = error.remedy or "Give a folder that holds config.json, or a hub id OWNER/NAME."
        finding = Finding("unreadable", Severity.ERROR, error.message, remedy)
        return cls(path, (finding,), "unreadable", vllm=None if vllm is None else str(vllm))

    @property
    def errors(self) -> tuple[Finding, ...]:
        """Findings that keep the checkpoint from serving."""
        return tuple(finding for finding in self.findings if finding.severity is Severity.ERROR)

    @property
    def warnings(self) -> tuple[Finding, ...]:
        """Findings that it serves in spite of."""
        return tuple(finding for finding in self.findings if finding.severity is Severity.WARNING)

    def exit_code(self, *, strict: bool = False) -> int:
        """Return 0 if it serves, 1 with errors (with ``strict`` also for warnings), 2 if it could not be read."""
        if self.verdict == "unreadable":
            return 2
        return int(self.verdict == "faulty" or (strict and bool(self.findings)))

    def as_json(self) -> dict[str, Any]:
        """Return ``{"path", "findings", "verdict"}``; a finding has ``tensor`` and ``file`` where they apply."""
        return {
            "path": self.path,
            "findings": [finding_json(finding) for finding in self.findings],
            "verdict": self.verdict,
        }


def _packed_share(checkpoint: Checkpoint) -> float:
    try:
        layout = layout_for(checkpoint.config).as_named_in(checkpoint.loaded)
    except HybridError:
        return 0.0
    done = total = 0
    for spec in (*(linear.weight for linear in layout.quantized), *layout.plain, *layout.mtp):
        if len(spec.shape) == 2 and not spec.name.endswith("embed_tokens.weight"):
            stored = formats.stored(checkpoint.loaded, spec.name.removesuffix(".weight"))
            count = prod(spec.shape) if stored else 0
            total += count
            done += count if stored and stored.quantized else 0
    return done / total if total else 0.0


def finding_json(finding: Finding) -> dict[str, str]:
    """Return a finding as a JSON object; ``tensor`` and ``file`` are there where they apply."""
    place = {"tensor": finding.tensor, "file": finding.file}
    return {
        "rule": finding.rule,
        "severity": str(finding.severity),
        **{key: value for key, value in place.items() if value is not None},
        "message": finding.message,
        "remedy": finding.remedy,
    }
