"""What the checker and vLLM say of one checkpoint, and where they differ."""

from __future__ import annotations

from dataclasses import dataclass

from gptq_hybrid.doctor import Report

from .judge import Judgement

# What the checker calls an error and a loader cannot see, by rule.
UNSEEN = {
    "mtp-values": "a loader looks at no values: zeros and NaN draft nothing, without an error",
    "scales-values": "a loader looks at no values",
    "weights-values": "a loader looks at no values",
    "g-idx-flag": "from 0.30 on every g_idx is dropped unread; the rows are in the wrong order all the same",
    "g-idx-fused": "as g-idx-flag",
    "g-idx-range": "as g-idx-flag",
    "tokenizer-missing": "the judge asks for no tokenizer",
    "companion-unreadable": "the judge asks for no tokenizer and no processor",
    "processor-missing": "the judge asks for no processor",
    "text-only-mrope": "it is the first forward pass that fails",
    "index-duplicate": "both copies load, and the last one stays; which that is depends on the files' names",
}


@dataclass(frozen=True)
class Opinion:
    """What both say of one checkpoint."""

    report: Report
    judgement: Judgement

    @property
    def unseen(self) -> bool:
        """Whether the checker's errors are all of a sort that a loader cannot confirm."""
        return bool(self.report.errors) and all(finding.rule in UNSEEN for finding in self.report.errors)

    @property
    def difference(self) -> str | None:
        """How they differ; None where they do not."""
        serves, fine = self.report.verdict == "serves", self.judgement.fine
        if serves and not fine:
            return f"missed: {self.judgement.said}"
        if fine and not serves and not self.unseen:
            return f"false alarm: {[f'{f.rule}: {f.message}' for f in self.report.errors]}"
        refusal = self.judgement.mtp_front
        if self.judgement.unwritten_draft and refusal is None:
            return f"the plugin's MTP check let it pass: {self.judgement.said}"
        if fine and refusal and not self.unseen:
            return f"the plugin's MTP check refused it: {refusal}"
        return None
