"""The calibration sources that ship, and the search for the one that recognises a ``--calibration`` value."""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from itertools import islice
from pathlib import Path

from gptq_hybrid.common.errors import HybridError
from gptq_hybrid.hooks import CalibrationSource, contributions

from ._files import (
    CSV_ENDINGS,
    FORMATS,
    ROW_ENDINGS,
    TEXT_ENDINGS,
    describe_files,
    is_row_folder,
    path_kind,
    read_rows,
    read_text,
    row_files,
    text_files,
)
from ._hub import describe_hub, hub_rows, is_hub_spec
from ._mix import is_mix, load_mix
from .rows import MALFORMED, LeftOut, Row, parse_row, row_key, shuffle_key

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
        remedy="Give a .jsonl, .parquet or .txt file, a folder of them, a mix (mix:NAME or a .toml), or a hub data "
        "set as OWNER/NAME[@REVISION][:SPLIT]. Sources: "
        + ", ".join(source.name for source in sources)
        + ".",
    )


def source_rows(
    spec: str, count: int, seed: int, on_left_out: Callable[[LeftOut], None] = lambda _: None
) -> Generator[Row, None, None]:
    """Yield the parsed rows of ``spec``, at most ``count``; ``on_left_out`` is called for each row left out.

    A data set may hold a few rows that cannot be used, such as empty messages or messages with images.

    Raises:
        HybridError: no source recognises it, it cannot be read, or all of its rows, or the first 100, cannot be
            used.
    """
    source = find_source(spec)
    good = 0
    bad: list[LeftOut] = []

    def leave_out(row: LeftOut) -> None:
        bad.append(row)
        on_left_out(row)

    for row in islice(_without_left_out(source.load(spec, count, seed), leave_out), count):
        try:
            yield parse_row(row)
            good += 1
        except ValueError as error:
            domain = row.get("domain") if isinstance(row, dict) else None
            leave_out(LeftOut(error, domain=domain))
        if len(bad) >= _PATIENCE and not good and not bad[0].where:
            break
    if bad and not good:
        raise no_usable_rows(f"calibration {spec!r}", bad)


def no_usable_rows(what: str, left_out: Sequence[LeftOut]) -> HybridError:
    """Make the error that all rows were left out."""
    last = left_out[-1]
    if last.where:
        return HybridError(
            f"{what}: no row can be used; the last of {len(left_out)} left out, {last.where}, {last.message}",
            remedy="Give rows of whole text, and of nothing but text.",
        )
    return HybridError(
        f"{what}: none of the first {len(left_out)} rows can be used; the last one {last.message}",
        remedy="Name the columns: OWNER/NAME:SPLIT#COLUMN, or #user=COLUMN,assistant=COLUMN."
        if last.reason == MALFORMED
        else "Give rows of whole text, and of nothing but text.",
    )


def _without_left_out(rows: Iterable[Row], on_left_out: Callable[[LeftOut], None]) -> Iterator[Row]:
    for row in rows:
        if isinstance(row, LeftOut):
            on_left_out(row)
        else:
            yield row


def load_rows(spec: str, count: int, seed: int) -> list[Row]:
    """Load at most ``count`` rows from the source that recognises ``spec``.

    Raises:
        HybridError: no source recognises it, it cannot be read, or it has no rows.
    """
    rows = list(source_rows(spec, count, seed))
    if not rows:
        raise HybridError(f"calibration {spec!r} has no rows", remedy="Give a file or data set with text.")
    return rows


def _load_files(spec: str, count: int, seed: int) -> list[Row]:
    """Load rows in an order that ``seed`` decides; every row is parsed first.

    Those that are left out come first, all of them: how many there are does not depend on ``count``.
    """
    left_out: list[Row] = []
    rows = (row for file in row_files(Path(spec)) for row in read_rows(file, left_out.append))
    shuffled = _shuffle(rows, count, seed)
    return left_out + shuffled


def _load_text(spec: str, count: int, seed: int) -> list[Row]:
    if path_kind(spec) == "folder" and not text_files(Path(spec)):
        endings = sorted({file.suffix for file in Path(spec).iterdir() if file.suffix})
        raise HybridError(
            f"folder {spec} holds no file that is read as text or rows"
            + (f"; it holds {', '.join(endings)}" if endings else ""),
            remedy=FORMATS,
        )
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
        lambda spec: spec.endswith(TEXT_ENDINGS) or (path_kind(spec) == "folder" and not is_row_folder(spec)),
        _load_text,
        lambda spec: describe_files(text_files(Path(spec)), Path(spec)),
    ),
    CalibrationSource(
        "jsonl",
        lambda spec: (
            spec.endswith((*ROW_ENDINGS, *CSV_ENDINGS))
            or is_row_folder(spec)
            or (path_kind(spec) == "file" and not spec.endswith((*TEXT_ENDINGS, ".toml")))
        ),
        _load_files,
        lambda spec: describe_files(row_files(Path(spec)), Path(spec)),
    ),
    CalibrationSource("mix", is_mix, _load_mix),
)
