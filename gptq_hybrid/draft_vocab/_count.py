"""Count the tokens that a model would have written."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from hashlib import sha256
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

Ids: TypeAlias = NDArray[np.int64]

# Documents are counted in this many parts, by hash. Each part is held out once, and ranked by the others.
FOLDS = 5
# Tokens counted at once. One count of 248,320 ids costs as much as that many tokens, and most documents have a few
# hundred.
_BATCH = 1 << 20


@dataclass(frozen=True, slots=True)
class ReplyMarks:
    """How a chat template marks replies, in token ids.

    Attributes:
        turn: opens any turn (``<|im_start|>``).
        role: follows it in a reply (``assistant``).
        end: ends a turn (``<|im_end|>``).
        between: ends a document (``<|endoftext|>``) if several are packed into one row.
    """

    turn: int
    role: tuple[int, ...]
    end: int
    between: int | None = None

    @classmethod
    def of(cls, tokenizer: Any) -> ReplyMarks | None:
        """Return the marks of ChatML in the ids of a transformers tokenizer; None if it has no such tokens."""
        vocabulary = tokenizer.get_vocab()
        turn, end = vocabulary.get("<|im_start|>"), vocabulary.get("<|im_end|>")
        if turn is None or end is None:
            return None
        role = tokenizer("assistant", add_special_tokens=False)["input_ids"]
        return cls(turn, tuple(role), end, vocabulary.get("<|endoftext|>"))


def reply_tokens(ids: Ids, marks: ReplyMarks) -> Ids | None:
    """Return the tokens of a document's replies, each with the token that ends it; None if it has no turns at all.

    The token after the role, a line break, belongs to the template. A document whose turns hold no reply, such as
    one that was cut before it, gives no tokens.
    """
    turns = np.flatnonzero(ids == marks.turn)
    if not len(turns):
        return None
    ends, parts = np.flatnonzero(ids == marks.end), []
    for at in turns:
        start = at + 1 + len(marks.role)
        if tuple(ids[at + 1 : start]) == marks.role:
            after = np.searchsorted(ends, start)
            parts.append(ids[start + 1 : ends[after] + 1 if after < len(ends) else len(ids)])
    return np.concatenate(parts) if parts else ids[:0]


class Counts:
    """Counts of tokens by id, in ``FOLDS`` parts of whole documents.

    Attributes:
        folds: float64 ``[FOLDS, vocab_size]``; which part a document goes to depends on its tokens alone, and of an
            answer on its prompt.
        documents: documents with at least one token to count.
        reply: tokens counted in replies.
        plain: tokens counted in documents without turns, which are counted whole.
    """

    def __init__(self, vocab_size: int) -> None:
        self.folds: NDArray[np.float64] = np.zeros((FOLDS, vocab_size))
        self.documents = 0
        self.reply = 0
        self.plain = 0

    @classmethod
    def mixed(cls, parts: Sequence[tuple[Counts, float]]) -> Counts:
        """Mix counts by weight, whatever their sizes; ``parts`` are ``(counts, weight)``."""
        mixed = cls(parts[0][0].folds.shape[1])
        for counts, weight in parts:
            mixed.folds += counts.folds * (weight / max(counts.tokens, 1))
            mixed.documents += counts.documents
            mixed.reply += counts.reply
            mixed.plain += counts.plain
        return mixed

    @property
    def tokens(self) -> int:
        """All tokens counted."""
        return self.reply + self.plain

    @property
    def total(self) -> NDArray[np.float64]:
        """Counts over all documents, float64 ``[vocab_size]``."""
        total: NDArray[np.float64] = self.folds.sum(axis=0)
        return total

    def add(self, rows: Iterable[Sequence[int]], marks: ReplyMarks | None) -> None:
        """Count ``rows`` of token ids: replies in documents that have turns, all tokens in the others.

        Raises:
            ValueError: an id is outside the vocabulary.
        """
        waiting: list[list[Ids]] = [[] for _ in range(FOLDS)]
        size = 0
        for row in rows:
            for document in _split_documents(np.asarray(row, dtype=np.int64), marks):
                replies = None if marks is None else reply_tokens(document, marks)
                counted = document if replies is None else replies
                if not len(counted):
                    continue
                self.documents += 1
                if replies is None:
                    self.plain += len(counted)
                else:
                    self.reply += len(counted)
                waiting[_fold(document.tobytes())].append(counted)
                size += len(counted)
            if size >= _BATCH:
                self._flush(waiting)
                size = 0
        self._flush(waiting)

    def add_answers(self, answers: Iterable[tuple[str, Sequence[int]]]) -> None:
        """Count answers, each of which is ``(prompt, ids)``: what names its prompt, and all that was replied.

        Answers to one prompt resemble each other, so all of them go to one part.

        Raises:
            ValueError: an id is outside the vocabulary.
        """
        waiting: list[list[Ids]] = [[] for _ in range(FOLDS)]
        for prompt, ids in answers:
            if len(ids):
                self.documents += 1
                self.reply += len(ids)
                waiting[_fold(prompt.encode())].append(np.asarray(ids, dtype=np.int64))
        self._flush(waiting)

    def _flush(self, waiting: list[list[Ids]]) -> None:
        limit = self.folds.shape[1]
        for fold, parts in enumerate(waiting):
            if parts:
                ids = np.concatenate(parts)
                if ids.max() >= limit:
                    raise ValueError(f"token {ids.max()} is outside a vocabulary of {limit}")
                self.folds[fold] += np.bincount(ids, minlength=limit)
            parts.clear()


def _fold(key: bytes) -> int:
    return int(sha256(key).hexdigest()[:8], 16) % FOLDS


def _split_documents(row: Ids, marks: ReplyMarks | None) -> list[Ids]:
    """Split a row into its documents, each with the token that ends it."""
    if marks is None or marks.between is None:
        return [row]
    return np.split(row, np.flatnonzero(row == marks.between) + 1)
