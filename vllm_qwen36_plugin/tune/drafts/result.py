"""The figures of ``qwen36 tune drafts``, and the file that keeps them while they are measured."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median
from typing import Any

from gptq_hybrid.common.atomic import write_json_atomic
from gptq_hybrid.common.errors import HybridError
from gptq_hybrid.common.small_files import read_json
from gptq_hybrid.common.vllm_server import Acceptance

from .client import Answer, Load
from .grid import Cell

KIND, FORMAT = "qwen36 tune drafts", 1


def percentile(values: Iterable[float], share: float) -> float:
    """Compute the value below which ``share`` of ``values`` lie, interpolating linearly."""
    ordered = sorted(values)
    place = share * (len(ordered) - 1)
    low = int(place)
    high = min(low + 1, len(ordered) - 1)
    return ordered[low] + (ordered[high] - ordered[low]) * (place - low)


@dataclass(frozen=True, slots=True)
class Repeat:
    """One run of a cell's requests.

    Attributes:
        tpot_ms: time per token of each answer that has one, milliseconds.
        ttft_ms: time to first token of each answer, milliseconds.
        prompt_tokens: tokens of each prompt.
        tokens: of all answers together.
        seconds: from the first request to the last answer.
    """

    tpot_ms: tuple[float, ...]
    ttft_ms: tuple[float, ...]
    prompt_tokens: tuple[int, ...]
    tokens: int
    seconds: float

    @classmethod
    def from_load(cls, load: Load) -> Repeat:
        """Take the figures from a run of requests.

        Raises:
            HybridError: no answer has two tokens, so there is no time between tokens.
        """
        answers: tuple[Answer, ...] = load.answers
        tpot = tuple(round(a.tpot_ms, 4) for a in answers if a.tpot_ms is not None)
        if not tpot:
            raise HybridError(
                "no answer has more than one token: there is no time between tokens",
                remedy="Give prompts that get long answers; a text that is complete already is not continued.",
            )
        return cls(
            tpot,
            tuple(round(a.ttft_ms, 3) for a in answers),
            tuple(a.prompt_tokens for a in answers),
            sum(a.tokens for a in answers),
            round(load.seconds, 4),
        )

    @property
    def tpot(self) -> float:
        """Median over the answers, ms."""
        return median(self.tpot_ms)


@dataclass(frozen=True, slots=True)
class CellResult:
    """A cell's repeats, and what vLLM's counters counted during all of them."""

    cell: Cell
    repeats: tuple[Repeat, ...]
    acceptance: Acceptance

    @property
    def tpot(self) -> float:
        """Median over repeats of the median over answers, ms."""
        return median(repeat.tpot for repeat in self.repeats)

    @property
    def tpot95(self) -> float:
        """95th percentile over all answers, ms."""
        return percentile((value for repeat in self.repeats for value in repeat.tpot_ms), 0.95)

    @property
    def ttft(self) -> float:
        """Median over all answers, ms."""
        return median(value for repeat in self.repeats for value in repeat.ttft_ms)

    @property
    def prompt_tokens(self) -> float:
        """Median over all prompts."""
        return median(value for repeat in self.repeats for value in repeat.prompt_tokens)

    @property
    def throughput(self) -> float:
        """Tokens of answers per second, all requests together; median over repeats."""
        return median(repeat.tokens / repeat.seconds for repeat in self.repeats)

    @property
    def positions(self) -> tuple[float, ...]:
        """Share of steps in which the draft at each position was accepted."""
        counters = self.acceptance
        return tuple(count / counters.drafts if counters.drafts else 0.0 for count in counters.per_position)

    def as_json(self) -> dict[str, Any]:
        """Make the cell's object in the file: figures for people, and the numbers they come from."""
        cell, counters = self.cell, self.acceptance
        return {
            "drafts": cell.drafts,
            "batch": cell.batch,
            "context": cell.context,
            "prompt_tokens": self.prompt_tokens,
            "tpot_ms": round(self.tpot, 4),
            "tpot_ms_95": round(self.tpot95, 4),
            "ttft_ms": round(self.ttft, 3),
            "tokens_per_second": round(self.throughput, 3),
            "acceptance_length": round(counters.length, 4) if cell.drafts else None,
            "acceptance_by_position": [round(share, 4) for share in self.positions],
            "counters": {
                "num_drafts": counters.drafts,
                "num_draft_tokens": counters.proposed,
                "num_accepted_tokens": counters.accepted,
                "num_accepted_tokens_per_pos": list(counters.per_position),
            },
            "repeats": [
                {
                    "tpot_ms": list(repeat.tpot_ms),
                    "ttft_ms": list(repeat.ttft_ms),
                    "prompt_tokens": list(repeat.prompt_tokens),
                    "tokens": repeat.tokens,
                    "seconds": repeat.seconds,
                }
                for repeat in self.repeats
            ],
        }

    @classmethod
    def from_json(cls, entry: Mapping[str, Any]) -> CellResult:
        """Read what :meth:`as_json` wrote."""
        counters = entry["counters"]
        return cls(
            Cell(entry["drafts"], entry["batch"], entry["context"]),
            tuple(
                Repeat(
                    tuple(repeat["tpot_ms"]),
                    tuple(repeat["ttft_ms"]),
                    tuple(repeat["prompt_tokens"]),
                    repeat["tokens"],
                    repeat["seconds"],
                )
                for repeat in entry["repeats"]
            ),
            Acceptance(
                counters["num_drafts"],
                counters["num_draft_tokens"],
                counters["num_accepted_tokens"],
                tuple(counters["num_accepted_tokens_per_pos"]),
            ),
        )


def difference(before: Acceptance, after: Acceptance) -> Acceptance:
    """Subtract two readings of the counters."""
    earlier = before.per_position + (0,) * (len(after.per_position) - len(before.per_position))
    return Acceptance(
        after.drafts - before.drafts,
        after.proposed - before.proposed,
        after.accepted - before.accepted,
        tuple(late - early for late, early in zip(after.per_position, earlier, strict=True)),
    )


@dataclass
class Results:
    """The cells measured so far. The file is rewritten after each."""

    path: Path
    settings: Mapping[str, Any]
    cells: dict[Cell, CellResult] = field(default_factory=dict)

    @classmethod
    def open(cls, path: Path, settings: Mapping[str, Any]) -> Results:
        """Read the cells that an earlier run with the same settings left in ``path``; none if there is no file.

        Raises:
            HybridError: the file is something else, or of other settings. It is left as it is.
        """
        if not path.exists():
            return cls(path, settings)
        other = "Give another file with --out, or remove this one."
        try:
            content = read_json(path)
            if content["kind"] != KIND or content["format"] != FORMAT:
                raise ValueError
            results = [CellResult.from_json(entry) for entry in content["cells"]]
            earlier: dict[str, Any] = dict(content["settings"])
        except (HybridError, ValueError, KeyError, TypeError, AttributeError) as error:
            raise HybridError(f"{path} exists and is no result of this command", remedy=other) from error
        changed = [name for name in settings if earlier.get(name) != settings[name]]
        if changed:
            raise HybridError(
                f"{path} was measured with other settings: {_changes(earlier, settings, changed)}",
                remedy=other,
            )
        return cls(path, settings, {result.cell: result for result in results})

    def add(self, result: CellResult) -> None:
        """Add a cell, and write the file."""
        self.cells[result.cell] = result
        self.write(None)

    def write(self, recommendation: Mapping[str, Any] | None) -> None:
        """Write the file; ``recommendation`` is None until every cell is measured."""
        write_json_atomic(self.path, self.as_json(recommendation))

    def as_json(self, recommendation: Mapping[str, Any] | None) -> dict[str, Any]:
        """Make the object in the file: settings, recommendation and cells."""
        return {
            "kind": KIND,
            "format": FORMAT,
            "settings": dict(self.settings),
            "recommendation": recommendation,
            "cells": [result.as_json() for result in self.cells.values()],
        }


def _changes(earlier: Mapping[str, Any], now: Mapping[str, Any], names: Iterable[str]) -> str:
    texts = []
    for name in names:
        old, new = earlier.get(name), now[name]
        if isinstance(old, Mapping) and isinstance(new, Mapping):
            keys = [key for key in {**old, **new} if old.get(key) != new.get(key)]
            texts.append(", ".join(f"{key} {old.get(key)} then, {new.get(key)} now" for key in keys))
        elif name == "prompts":
            texts.append("other prompts")
        elif isinstance(old, list) and isinstance(new, list):
            texts.append(f"vllm serve {' '.join(map(str, old))} then, {' '.join(map(str, new))} now")
        else:
            texts.append(f"{name} {old} then, {new} now")
    return "; ".join(texts)
