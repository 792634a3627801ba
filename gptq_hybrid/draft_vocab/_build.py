"""From token rows to a :class:`~gptq_hybrid.checkpoint.DraftVocab`."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from gptq_hybrid.checkpoint import DraftVocab
from gptq_hybrid.checkpoint.draft_vocab_file import read_vocab_size, shipped_for
from gptq_hybrid.checkpoint.files import LocalFiles
from gptq_hybrid.checkpoint.json_files import fetch_json_object
from gptq_hybrid.checkpoint.vocabulary import Vocabulary, end_tokens, read_vocabulary

from ._count import FOLDS, Counts, ReplyMarks
from ._rank import Numbers, expected_counts, held_out_shares, rank

# Added tokens that a chat model writes itself. Counting misses them if the text has none, and a draft that cannot
# propose them goes wrong at the end of every thought or call.
_WRITTEN = ("<|im_end|>", "<|endoftext|>", "<think>", "</think>", "<tool_call>", "</tool_call>")

# Calibration text is short: of a million tokens some 50,000 are distinct, most of the rarer ones by chance. So the
# list that ships for a tokenizer counts as this many tokens more. In bench/draft_vocab, at N = 32,768, the lists
# of short texts then hold more of other documents of their own domain (+0.2 to +2.7 points; European languages:
# -0.5), and 5 to 9 points more of text of all domains.
PRIOR_TOKENS = 1_000_000


def count_documents(rows: Iterable[Sequence[int]], tokenizer: Any, vocab_size: int) -> Counts:
    """Count rows of token ids: replies in a row that has roles, all tokens in a row that has none."""
    counts = Counts(vocab_size)
    counts.add(rows, ReplyMarks.of(tokenizer))
    return counts


def first_tokens(folder: str | Path) -> list[int]:
    """Return the ids that go before all counted ones: those that end a reply, and those of ``_WRITTEN``.

    Raises:
        CheckpointError: the tokenizer or config cannot be read.
    """
    folder = Path(folder)
    files = LocalFiles(folder)
    return _first_tokens(files, read_vocabulary(files), read_vocab_size(files))


def _first_tokens(files: LocalFiles, vocabulary: Vocabulary, size: int) -> list[int]:
    ends = end_tokens(files, fetch_json_object(files, "config.json"))
    written = (vocabulary.added[name] for name in _WRITTEN if name in vocabulary.added)
    return [i for i in dict.fromkeys((*ends, *written)) if i < size]


def draft_vocab_from_rows(
    folder: str | Path,
    tokenizer: Any,
    rows: Iterable[Mapping[str, Sequence[int]]],
    manifests: Sequence[Mapping[str, Any]],
) -> DraftVocab | None:
    """Make the draft vocabulary of a checkpoint from calibration rows.

    Args:
        folder: the checkpoint, for its tokenizer, ``vocab_size`` and end-of-reply tokens.
        tokenizer: its transformers tokenizer.
        rows: ``{"input_ids"}`` each, as in :class:`~gptq_hybrid.calibration.Calibration`.
        manifests: what the rows are, as in the same class.

    Returns:
        None if the rows hold nothing to count, such as conversations that were all cut before the reply.

    Raises:
        CheckpointError: the tokenizer or config cannot be read.
    """
    folder = Path(folder)
    size = read_vocab_size(LocalFiles(folder))
    counts = count_documents((row["input_ids"] for row in rows), tokenizer, size)
    if not counts.tokens:
        return None
    return make_draft_vocab(folder, counts, {"texts": [_describe(manifest) for manifest in manifests]})


def make_draft_vocab(
    folder: str | Path,
    counts: Counts,
    source: Mapping[str, Any],
    *,
    blend: bool = True,
    keep: int | None = None,
) -> DraftVocab:
    """Make the draft vocabulary of a checkpoint folder from counts.

    Args:
        folder: the checkpoint.
        counts: of replies, or of text like them.
        source: what they were counted from, for people.
        blend: if a list ships for the tokenizer, count it as ``PRIOR_TOKENS`` tokens more.
        keep: most ids.

    Raises:
        CheckpointError: the tokenizer or config cannot be read.
    """
    folder = Path(folder)
    files = LocalFiles(folder)
    vocabulary, size = read_vocabulary(files), read_vocab_size(files)
    first = _first_tokens(files, vocabulary, size)
    shipped = shipped_for(vocabulary, size) if blend else None
    prior: Numbers | float = 0.0
    note: dict[str, str] = {}
    if shipped is not None:
        prior = expected_counts(shipped.ranked, size, PRIOR_TOKENS)
        note = {"and": f"the list that ships for this tokenizer, as {PRIOR_TOKENS:,} tokens"}
    shares = held_out_shares(counts.folds, first, prior=prior)
    return DraftVocab(
        tokenizer=vocabulary.sha256,
        vocab_size=size,
        ranked=tuple(rank(counts.total + prior, first)[:keep]),
        coverage={n: round(share, 6) for n, share in shares.items()},
        source={
            **source,
            **note,
            "counted": {
                "documents": counts.documents,
                "reply_tokens": counts.reply,
                "tokens_of_texts_without_roles": counts.plain,
            },
            "held_out": f"{FOLDS} parts of whole documents, each ranked by the others",
        },
    )


def _describe(manifest: Mapping[str, Any]) -> dict[str, Any]:
    """Shorten a calibration manifest to what tells texts apart; it holds no path of this machine."""
    domains = manifest.get("domains", {})
    left_out: Counter[str] = Counter()
    for domain in domains.values():
        left_out.update(domain.get("dropped", {}))
    return {
        "text": manifest["calibration"],
        "sha256": manifest["sha256"],
        "documents": {name: domain["documents"] for name, domain in domains.items()},
        **({"left_out": dict(sorted(left_out.items()))} if left_out else {}),
    }
