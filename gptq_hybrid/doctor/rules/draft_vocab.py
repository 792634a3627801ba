"""Is the list of tokens to draft from, where there is one, one of this checkpoint's own tokens?"""

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
        "vllm-qwen36-plugin can draft over the first N tokens of draft_vocab.json alone. One of another tokenizer "
        "ranks other words, and drafts are seldom right."
    ),
    remedy=f"Make it anew: qwen36 draft-vocab {{path}}; or remove {DRAFT_VOCAB_FILE}.",
)
def draft_vocab(see: Inspection) -> Iterator[Fault]:
    if see.mtp and see.layout.mtp and isinstance(found := see.checkpoint.draft_vocab, CheckpointError):
        yield Fault(found.message, file=found.path.name)


DRAFT_VOCAB_RULES = (draft_vocab,)
