"""Making ``draft_vocab.json``: which tokens replies are made of, counted from text. Reading it: ``checkpoint``."""

from ._build import PRIOR_TOKENS, count_documents, draft_vocab_of, first_tokens, make_draft_vocab
from ._count import Counts, ReplyMarks
from ._rank import SIZES, expected, rank, shares

__all__ = [
    "PRIOR_TOKENS",
    "SIZES",
    "Counts",
    "ReplyMarks",
    "count_documents",
    "draft_vocab_of",
    "expected",
    "first_tokens",
    "make_draft_vocab",
    "rank",
    "shares",
]
