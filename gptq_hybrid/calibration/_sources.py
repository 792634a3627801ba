"""The calibration sources that ship, and the search for the one that recognises a ``--calibration`` value."""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterator
from itertools import islice
from pathlib import Path

from gptq_hybrid.common.errors import HybridError
from gptq_hybrid.hooks import CalibrationSource, contributions

from ._files import (
    JSONL_ENDINGS,
    TEXT_ENDINGS,
    describe_files,
    is_jsonl_folder,
    jsonl_files,
    path_kind,
    read_jsonl,
    read_text,
    text_files,
)
from ._hub import describe_hub, hub_rows, is_hub_spec
from ._mix import is_mix, load_mix
from .rows import Row, parse_row, row_key, shuffle_key

# In bench/quality, calibrating on chat alone, as the reference artifact does, cost 15 % more divergence than a
# mix.
DEFAULT_CALIBRATION = "mix:broad"
# After this many rows without a usable one, the source is taken for something else.
_PATIENCE = 100


def calibration_sources() -> list[CalibrationSource]:
    """Return every source, built in or of a plugin; later ones win over earlier ones."""
    return contributions("qwen36_calibration_sources")


def find_source(spec: str) -> CalibrationSource:
    """Return the source that recognises ``spec``; a plugin's source goes before those that ship.

    Raises:
        HybridError: no source recognises it.
    """
    sources = calibration_sources()
    for source in reversed(sources):
        if source.matches(spec):
            return source
    raise HybridError(
        f"calibration {spec!r} is neither a file nor a data set id",
        remedy="Give a .jsonl or .txt file, a folder of them, a mix (mix:NAME or a .toml), or a hub data set as "
        "OWNER/NAME[@REVISION][:SPLIT]. Sources: " + ", ".join(source.name for source in sources) + ".",
    )


def source_rows(
    spec: str, count: int, seed: int, on_malformed: Callable[[], None] = lambda: None
) -> Generator[Row, None, None]:
    """Yield the parsed rows of ``spec``, at most ``count``; ``on_malformed`` is called for each row left out.

    A data set of the hub may hold a few rows that cannot be used, such as empty messages.

    Raises:
        HybridError: no source recognises it, it cannot be read, or all of its rows, or the first 100, are
            malformed.
    """
    source = find_source(spec)
    good, bad = 0, 0
    for row in islice(source.load(spec, count, seed), count):
        try:
            yield parse_row(row)
            good += 1
        except ValueError as error:
            on_malformed()
            bad += 1
            reason = error
        if bad >= _PATIENCE and not good:
            break
    if bad and not good:
        raise HybridError(
            f"calibration {spec!r}: none of the first {bad} rows can be used; the last one {reason}",
            remedy="Name the columns: OWNER/NAME:SPLIT#COLUMN, or #user=COLUMN,assistant=COLUMN.",
        )


def load_rows(spec: str, count: int, seed: int) -> list[Row]:
    """Load at most ``count`` rows from the source that recognises ``spec``.

    Raises:
        HybridError: no source recognises it, it cannot be read, or it has no rows.
    """
    rows = list(source_rows(spec, count, seed))
    if not rows:
        raise HybridError(f"calibration {spec!r} has no rows", remedy="Give a file or data set with text.")
    return rows


def _load_jsonl(spec: str, count: int, seed: int) -> list[Row]:
    """Load rows in an order that ``seed`` decides; every line is parsed first."""
    return _shuffle((row for file in jsonl_files(Path(spec)) for row in read_jsonl(file)), count, seed)


def _load_text(spec: str, count: int, seed: int) -> list[Row]:
    return _shuffle((row for file in text_files(Path(spec)) for row in read_text(file)), count, seed)


def _shuffle(rows: Iterator[Row], count: int, seed: int) -> list[Row]:
    return sorted(rows, key=lambda row: shuffle_key(seed, row_key(row)))[:count]


def _load_mix(spec: str, count: int, seed: int) -> Iterator[Row]:
    """Take rows of the parts in turn, by weight in rows; ``load_calibration`` weighs tokens instead."""
    parts = {part.name: part for part in load_mix(spec).parts}
    rows = {name: source_rows(part.source, part.max_rows or count, seed) for name, part in parts.items()}
    taken = dict.fromkeys(parts, 0)
    while rows:
        name = min(rows, key=lambda name: (taken[name] / parts[name].weight, name))
        row = next(rows[name], None)
        if row is None:
            del rows[name]
        else:
            taken[name] += 1
            if parts[name].accepts(row) and not is_held_out(row, parts[name].hold_out):
                yield {**row, "domain": name}


def is_held_out(row: Row, share: float) -> bool:
    """Whether a row belongs to the ``share`` of its source that is kept for evaluation, whatever the seed."""
    return share > 0 and int(row_key(row)[:8], 16) < share * 2**32


BUILTIN_SOURCES = (
    CalibrationSource("hub", is_hub_spec, hub_rows, describe_hub),
    CalibrationSource(
        "text",
        lambda spec: (
            spec.endswith(TEXT_ENDINGS) or (path_kind(spec) == "folder" and not is_jsonl_folder(spec))
        ),
        _load_text,
        lambda spec: describe_files(text_files(Path(spec)), Path(spec)),
    ),
    CalibrationSource(
        "jsonl",
        lambda spec: (
            spec.endswith(JSONL_ENDINGS)
            or is_jsonl_folder(spec)
            or (path_kind(spec) == "file" and not spec.endswith((*TEXT_ENDINGS, ".toml")))
        ),
        _load_jsonl,
        lambda spec: describe_files(jsonl_files(Path(spec)), Path(spec)),
    ),
    CalibrationSource("mix", is_mix, _load_mix),
)
