"""Choose rows: by weight in tokens, each text once, none that evaluation will use."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Callable, Generator, Sequence
from dataclasses import dataclass, field
from typing import Any

from ._duplicates import TextIndex
from ._mix import Part
from ._sources import find_source, is_held_out, source_rows
from .encode import MIN_TOKENS, RejectedRowError, encode_row
from .rows import LeftOut, Row

# Share of five-word runs from which a row counts as a near-duplicate. The share is lower for evaluation documents,
# because calibrating on one of them costs more than losing a row.
NEAR_DUPLICATE = 0.7
NEAR_EXCLUDED = 0.5


@dataclass(frozen=True, slots=True)
class ChosenRow:
    """A row that was drawn: its domain, token ids, and the licence its source gave it."""

    domain: str
    input_ids: list[int]
    licence: str | None


@dataclass(slots=True)
class Selection:
    """The rows that were drawn, and what was left out.

    Attributes:
        rows: in the order they were drawn.
        further: likewise, those that were drawn after them.
        dropped: by domain, how many rows were left out for each reason: ``malformed``, ``with_broken_text``,
            ``with_images`` (``_audio``, ``_video``, ``_other_parts``), ``held_out``, ``excluded``, ``duplicate``,
            ``near_duplicate``, ``rejected`` (by the chat template), ``short``. Of files, the unreadable rows of
            all lines count, whatever was drawn.
        exhausted: the parts that had no more rows, before there were enough without ``further``.
        rejection: the last message of the chat template.
    """

    rows: list[ChosenRow] = field(default_factory=list)
    further: list[ChosenRow] = field(default_factory=list)
    dropped: dict[str, Counter[str]] = field(default_factory=lambda: defaultdict(Counter))
    exhausted: list[str] = field(default_factory=list)
    rejection: str | None = None


@dataclass(slots=True)
class _Stream:
    part: Part
    domain: str
    rows: Generator[Row, None, None]
    tokens: int = 0
    drawn: int = 0


def select(
    parts: Sequence[Part],
    tokenizer: Any,
    *,
    samples: int,
    max_length: int,
    seed: int,
    by_tokens: bool,
    excluded: TextIndex | None = None,
    further: int = 0,
    on_progress: Callable[[int, int], None] | None = None,
) -> Selection:
    """Draw rows until there are ``samples`` of them, or ``samples`` × ``max_length`` tokens.

    The next row always comes from the part with the fewest tokens for its weight, by name if several are equal. So
    tokens end up in the proportions of the weights, whatever the lengths of rows. A part that runs dry leaves its
    share to the others. The order of ``parts`` makes no difference.

    Args:
        parts: where rows come from.
        tokenizer: the model's transformers tokenizer.
        samples: how many rows to draw.
        max_length: tokens kept of each row.
        seed: decides which rows are drawn.
        by_tokens: count tokens, not rows.
        excluded: documents that must not be drawn, nor any row that shares half of their text.
        further: rows to draw after those.
        on_progress: called with the number drawn so far and in the end, in rows or tokens.

    Raises:
        HybridError: a source cannot be read, or rows hold messages and there is no chat template.
    """
    selection = Selection()
    chosen = TextIndex(NEAR_DUPLICATE, max_length)
    # Rows read at most: enough if rows have a 64th of the length, or one row in 64 is usable.
    limit = (samples + further) * max(64, max_length // 64) + 1024
    streams = []
    for part in sorted(parts, key=lambda part: part.name):
        domain = part.name or find_source(part.source).name
        rows = source_rows(part.source, limit, seed, _count_left_out(part, domain, selection))
        streams.append(_Stream(part, domain, rows))
    opened = list(streams)
    goal = samples * max_length if by_tokens else samples
    drawn = 0
    try:
        while streams and (drawn < goal or len(selection.further) < further):
            stream = min(streams, key=lambda s: (s.tokens / s.part.weight, s.part.name))
            full = stream.part.max_rows is not None and stream.drawn >= stream.part.max_rows
            row = None if full else _draw(stream, tokenizer, max_length, chosen, excluded, selection)
            if row is None:
                streams.remove(stream)
                if not full and drawn < goal:
                    selection.exhausted.append(stream.part.name)
                continue
            (selection.rows if drawn < goal else selection.further).append(row)
            stream.drawn += 1
            stream.tokens += len(row.input_ids)
            drawn += len(row.input_ids) if by_tokens else 1
            if on_progress is not None:
                on_progress(min(drawn, goal), goal)
    finally:
        # An open stream would go on downloading until it is garbage-collected.
        for stream in opened:
            stream.rows.close()
    return selection


def _count_left_out(part: Part, domain: str, selection: Selection) -> Callable[[LeftOut], None]:
    def count(row: LeftOut) -> None:
        if not part.domains or row.domain in part.domains:
            selection.dropped[part.name or row.domain or domain][row.reason] += 1

    return count


def _draw(
    stream: _Stream,
    tokenizer: Any,
    max_length: int,
    chosen: TextIndex,
    excluded: TextIndex | None,
    selection: Selection,
) -> ChosenRow | None:
    """Return the stream's next usable row, counting those it skips; None at the end of the stream."""
    part = stream.part
    shortest = max_length if part.only_full else MIN_TOKENS
    for row in filter(part.accepts, stream.rows):
        domain = part.name or row.get("domain") or stream.domain
        dropped = selection.dropped[domain]
        if is_held_out(row, part.hold_out):
            dropped["held_out"] += 1
        elif excluded is not None and excluded.find(row):
            dropped["excluded"] += 1
        elif match := chosen.find(row):
            dropped["duplicate" if match == "exact" else "near_duplicate"] += 1
        else:
            try:
                ids = encode_row(row, tokenizer, max_length, part.template)
            except RejectedRowError as error:
                dropped["rejected"] += 1
                selection.rejection = str(error)
                continue
            if len(ids) >= shortest:
                chosen.add(row)
                return ChosenRow(domain, ids, row.get("licence"))
            dropped["short"] += 1
    return None
