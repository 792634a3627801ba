"""Choosing rows: by weight in tokens, each text once, none that evaluation will use."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Callable, Generator, Sequence
from dataclasses import dataclass, field
from typing import Any

from ._duplicates import Seen
from ._mix import Part
from ._sources import find_source, held_out, source_rows
from .encode import MIN_TOKENS, RejectedRowError, encode_row
from .rows import Row

# Share of five-word runs from which a row counts as seen in another; less is asked of evaluation documents,
# where a miss costs more than a row.
NEAR_DUPLICATE = 0.7
NEAR_EXCLUDED = 0.5


@dataclass(frozen=True, slots=True)
class Taken:
    """A chosen row: its domain, token ids, and the licence its source gave it."""

    domain: str
    input_ids: list[int]
    licence: str | None


@dataclass(slots=True)
class Selection:
    """Chosen rows in the order they were drawn.

    ``dropped`` counts, by domain, rows left out by reason: ``malformed``, ``held_out``, ``excluded``,
    ``duplicate``, ``near_duplicate``, ``rejected`` (by the chat template), ``short``. ``exhausted`` names the
    parts that had no more to give, ``rejection`` is what the template said last.
    """

    rows: list[Taken] = field(default_factory=list)
    dropped: dict[str, Counter[str]] = field(default_factory=lambda: defaultdict(Counter))
    exhausted: list[str] = field(default_factory=list)
    rejection: str | None = None


@dataclass(slots=True)
class _Stream:
    part: Part
    domain: str
    rows: Generator[Row, None, None]
    tokens: int = 0
    taken: int = 0


def select(
    parts: Sequence[Part],
    tokenizer: Any,
    *,
    samples: int,
    max_length: int,
    seed: int,
    by_tokens: bool,
    excluded: Seen | None = None,
    on_progress: Callable[[int, int], None] | None = None,
) -> Selection:
    """Draw rows until there are ``samples`` of them, or of ``samples`` × ``max_length`` tokens.

    The next row always comes from the part whose tokens, over its weight, are fewest (by name where equal),
    so tokens end up in the proportions of the weights whatever the lengths of rows. A part that runs dry
    leaves its share to the others. The order of ``parts`` makes no difference.

    Args:
        samples: rows wanted; ``max_length``: tokens kept of each.
        by_tokens: count tokens, not rows.
        excluded: documents that must not be drawn, nor anything that shares half their text.
        on_progress: called with what is there and what is wanted, in rows or tokens.

    Raises:
        HybridError: a source cannot be read, or rows hold messages and there is no chat template.
    """
    found = Selection()
    seen = Seen(NEAR_DUPLICATE, max_length)
    # Read at most: enough for rows of a 64th of the length, or one usable row in 64.
    limit = samples * max(64, max_length // 64) + 1024
    streams = []
    for part in sorted(parts, key=lambda part: part.name):
        domain = part.name or find_source(part.source).name
        rows = source_rows(part.source, limit, seed, _counter(found.dropped[domain]))
        streams.append(_Stream(part, domain, rows))
    opened = list(streams)
    wanted = samples * max_length if by_tokens else samples
    have = 0
    try:
        while streams and have < wanted:
            stream = min(streams, key=lambda s: (s.tokens / s.part.weight, s.part.name))
            full = stream.part.max_rows is not None and stream.taken >= stream.part.max_rows
            taken = None if full else _next(stream, tokenizer, max_length, seen, excluded, found)
            if taken is None:
                streams.remove(stream)
                if not full:
                    found.exhausted.append(stream.part.name)
                continue
            found.rows.append(taken)
            stream.taken += 1
            stream.tokens += len(taken.input_ids)
            have += len(taken.input_ids) if by_tokens else 1
            if on_progress is not None:
                on_progress(min(have, wanted), wanted)
    finally:
        # A stream left open would go on downloading until it is collected.
        for stream in opened:
            stream.rows.close()
    return found


def _counter(counts: Counter[str]) -> Callable[[], None]:
    def count() -> None:
        counts["malformed"] += 1

    return count


def _next(
    stream: _Stream, tokenizer: Any, max_length: int, seen: Seen, excluded: Seen | None, found: Selection
) -> Taken | None:
    part = stream.part
    shortest = max_length if part.only_full else MIN_TOKENS
    for row in filter(part.wants, stream.rows):
        domain = part.name or row.get("domain") or stream.domain
        dropped = found.dropped[domain]
        if held_out(row, part.hold_out):
            dropped["held_out"] += 1
        elif excluded is not None and excluded.find(row):
            dropped["excluded"] += 1
        elif how := seen.find(row):
            dropped["duplicate" if how == "exact" else "near_duplicate"] += 1
        else:
            try:
                ids = encode_row(row, tokenizer, max_length, part.template)
            except RejectedRowError as error:
                dropped["rejected"] += 1
                found.rejection = str(error)
                continue
            if len(ids) >= shortest:
                seen.add(row)
                return Taken(domain, ids, row.get("licence"))
            dropped["short"] += 1
    return None
