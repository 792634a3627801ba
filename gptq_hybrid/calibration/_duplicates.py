"""Find texts that were seen before, word for word or nearly so."""

from __future__ import annotations

import re
from collections import Counter
from typing import Literal
from zlib import crc32

from .rows import Row, normalize_text, row_key, row_text

# Words are compared in runs of this many. Scripts without spaces between words are taken character by character.
_RUN = 5
_WORD = re.compile(r"[\u3040-\u30ff\u3400-\u9fff\uf900-\ufaff\u0e00-\u0e7f]|\w+|[^\w\s]")
# Shorter texts share runs by chance: only an equal one counts.
_FEWEST_RUNS = 16


class TextIndex:
    """An index of texts that finds those sharing most of their five-word runs with a text already in it.

    The share is of the shorter of the two texts, so that a text contained in another is found in either order.
    That is containment as in A. Broder, "On the resemblance and containment of documents", 1997, but over all runs
    instead of a sample: 512 rows of 2,048 tokens have about 0.8 million. A run counts for the first text that had
    it.
    """

    def __init__(self, threshold: float, words: int) -> None:
        """Make an empty index.

        Args:
            threshold: share of runs, 0 to 1, from which a text counts as nearly equal.
            words: how many words of each text are read.
        """
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
        """Say whether the index holds the row's text: apart from case and white space, or nearly."""
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
        # Text has at most 32 characters a word on average.
        words = _WORD.findall(normalize_text(row_text(row)[: self._words * 32]))[: self._words]
        return {crc32(" ".join(words[i : i + _RUN]).encode()) for i in range(len(words) - _RUN + 1)}
