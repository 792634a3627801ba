"""Rule: does the draft vocabulary, if there is one, rank this checkpoint's own tokens?"""

from __future__ import annotations

from collections.abc import Iterator

from gptq_hybrid.checkpoint.draft_vocab_file import DRAFT_VOCAB_FILE
from gptq_hybrid.common.errors import CheckpointError
from gptq_hybrid.doctor.findings import Fault, Inspection, Severity, rule


@rule(
    "draft-vocab",
    scope="serving",
    severity=Severity.WARNING,
    explanation=(
        "vllm-qwen36-plugin can draft over only the first N tokens of draft_vocab.json. A list of another "
        "tokenizer ranks other words, so drafts are seldom right."
    ),
    remedy=f"Make a new one: qwen36 draft-vocab {{path}}; or remove {DRAFT_VOCAB_FILE}.",
)
def draft_vocab(inspection: Inspection) -> Iterator[Fault]:
    if inspection.drafting and isinstance(error := inspection.checkpoint.draft_vocab, CheckpointError):
        yield Fault(error.message, file=error.path.name)


DRAFT_VOCAB_RULES = (draft_vocab,)
