"""Texts seen before, word for word or nearly so."""

from __future__ import annotations

import re
from collections import Counter
from typing import Literal
from zlib import crc32

from .rows import Row, normalized, row_key, row_text

# Words compared in runs of this many. Scripts without spaces between words are taken character by character.
_RUN = 5
_WORD = re.compile(r"[\u3040-\u30ff\u3400-\u9fff\uf900-\ufaff\u0e00-\u0e7f]|\w+|[^\w\s]")
# Shorter texts share runs by chance: only an equal one counts.
_FEWEST_RUNS = 16


class Seen:
    """An index of texts that finds those sharing most of their five-word runs with one already in it.

    What is shared is held against the shorter of the two, so that a text contained in another is found both
    ways round (containment as in A. Broder, "On the resemblance and containment of documents", 1997, over
    all runs instead of a sample: 512 rows of 2,048 tokens have about 0.8 million). A run counts for the first
    text that had it.
    """

    def __init__(self, threshold: float, words: int) -> None:
        """``threshold``: share of runs, 0 to 1, from which a text counts as seen; ``words``: read of each."""
        self._threshold = threshold
        self._words = words
        self._keys: set[str] = set()
        self._owner: dict[int, int] = {}
        self._sizes: list[int] = []

    def add(self, row: Row) -> None:
        """Put a row into the index."""
        self._keys.add(row_key(row))
        runs = self._runs(row)
        for run in runs:
            self._owner.setdefault(run, len(self._sizes))
        self._sizes.append(len(runs))

    def find(self, row: Row) -> Literal["exact", "near"] | None:
        """Whether the row's text is in the index, case and white space aside, or nearly so."""
        if row_key(row) in self._keys:
            return "exact"
        runs = self._runs(row)
        if len(runs) < _FEWEST_RUNS:
            return None
        shared = Counter(self._owner[run] for run in runs if run in self._owner)
        for text, count in shared.items():
            shorter = min(len(runs), self._sizes[text])
            if shorter >= _FEWEST_RUNS and count >= self._threshold * shorter:
                return "near"
        return None

    def __len__(self) -> int:
        return len(self._sizes)

    def _runs(self, row: Row) -> set[int]:
        # A word takes no more than 32 characters on average, or it is no text.
        words = _WORD.findall(normalized(row_text(row)[: self._words * 32]))[: self._words]
        return {crc32(" ".join(words[i : i + _RUN]).encode()) for i in range(len(words) - _RUN + 1)}
