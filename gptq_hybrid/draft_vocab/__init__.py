"""Make ``draft_vocab.json``: which tokens replies are made of, counted from text.

:mod:`gptq_hybrid.checkpoint` reads the file.
"""

from ._build import (
    PRIOR_TOKENS,
    count_documents,
    draft_vocab_from_rows,
    first_tokens,
    make_draft_vocab,
)
from ._count import Counts, ReplyMarks
from ._rank import SIZES, expected_counts, rank, shares

__all__ = [
    "PRIOR_TOKENS",
    "SIZES",
    "Counts",
    "ReplyMarks",
    "count_documents",
    "draft_vocab_from_rows",
    "expected_counts",
    "first_tokens",
    "make_draft_vocab",
    "rank",
    "shares",
]
