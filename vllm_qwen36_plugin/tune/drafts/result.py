"""What ``qwen36 tune drafts`` finds, and the file that keeps it while it is found."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median
from typing import Any

from gptq_hybrid.common.atomic import write_json_atomic
from gptq_hybrid.common.errors import HybridError
from gptq_hybrid.common.vllm_server import Acceptance

from .client import Answer, Load
from .grid import Cell

KIND, FORMAT = "qwen36 tune drafts", 1


def percentile(values: Iterable[float], share: float) -> float:
    """The value below which ``share`` of ``values`` lie, linear between two of them."""
    ordered = sorted(values)
    place = share * (len(ordered) - 1)
    low = int(place)
    high = min(low + 1, len(ordered) - 1)
    return ordered[low] + (ordered[high] - ordered[low]) * (place - low)


@dataclass(frozen=True, slots=True)
class Repeat:
    """One run of a cell's requests. Times in milliseconds, one an answer that has one; ``seconds`` of it all."""

    tpot_ms: tuple[float, ...]
    ttft_ms: tuple[float, ...]
    prompt_tokens: tuple[int, ...]
    tokens: int
    seconds: float

    @classmethod
    def of(cls, load: Load) -> Repeat:
        """What a run of requests says.

        Raises:
            HybridError: no answer has two tokens, so there is no time between tokens.
        """
        answers: tuple[Answer, ...] = load.answers
        tpot = tuple(round(a.tpot_ms, 4) for a in answers if a.tpot_ms is not None)
        if not tpot:
            raise HybridError(
                "no answer has more than one token: there is no time between tokens",
                remedy="Give prompts that are answered at length; a text that is complete ends there.",
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
        """Median over the answers."""
        return median(self.tpot_ms)


@dataclass(frozen=True, slots=True)
class Measured:
    """A cell's repeats, and what vLLM's counters say of all of them."""

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
        """Tokens of answers a second, all requests together; median over repeats."""
        return median(repeat.tokens / repeat.seconds for repeat in self.repeats)

    @property
    def positions(self) -> tuple[float, ...]:
        """For each position of the draft, the share of steps in which it was accepted."""
        found = self.acceptance
        return tuple(count / found.drafts if found.drafts else 0.0 for count in found.per_position)

    def as_json(self) -> dict[str, Any]:
        """As the file has it: figures for people, and all they come from."""
        cell, found = self.cell, self.acceptance
        return {
            "drafts": cell.drafts,
            "batch": cell.batch,
            "context": cell.context,
            "prompt_tokens": self.prompt_tokens,
            "tpot_ms": round(self.tpot, 4),
            "tpot_ms_95": round(self.tpot95, 4),
            "ttft_ms": round(self.ttft, 3),
            "tokens_per_second": round(self.throughput, 3),
            "acceptance_length": round(found.length, 4) if cell.drafts else None,
            "acceptance_by_position": [round(share, 4) for share in self.positions],
            "counters": {
                "num_drafts": found.drafts,
                "num_draft_tokens": found.proposed,
                "num_accepted_tokens": found.accepted,
                "num_accepted_tokens_per_pos": list(found.per_position),
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
    def from_json(cls, entry: Mapping[str, Any]) -> Measured:
        """What :meth:`as_json` wrote."""
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
    """What was counted between two readings."""
    earlier = before.per_position + (0,) * (len(after.per_position) - len(before.per_position))
    return Acceptance(
        after.drafts - before.drafts,
        after.proposed - before.proposed,
        after.accepted - before.accepted,
        tuple(late - early for late, early in zip(after.per_position, earlier, strict=True)),
    )


@dataclass
class Results:
    """The cells measured so far, and the file they are in after each."""

    path: Path
    settings: Mapping[str, Any]
    cells: dict[Cell, Measured] = field(default_factory=dict)

    @classmethod
    def at(cls, path: Path, settings: Mapping[str, Any]) -> Results:
        """Those that an earlier run with the same settings left in ``path``, or none yet.

        Raises:
            HybridError: there is another file, or one of other settings: nothing of it is lost.
        """
        if not path.exists():
            return cls(path, settings)
        other = "Give another file with --out, or remove this one."
        try:
            content = json.loads(path.read_text(encoding="utf-8"))
            if content["kind"] != KIND or content["format"] != FORMAT:
                raise ValueError
            measured = [Measured.from_json(entry) for entry in content["cells"]]
            earlier: dict[str, Any] = dict(content["settings"])
        except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
            raise HybridError(
                f"{path} is there already and is no result of this command", remedy=other
            ) from error
        changed = [name for name in settings if earlier.get(name) != settings[name]]
        if changed:
            raise HybridError(
                f"{path} was measured with other settings: {_changes(earlier, settings, changed)}",
                remedy=other,
            )
        return cls(path, settings, {one.cell: one for one in measured})

    def add(self, measured: Measured) -> None:
        """Keep one more cell, in the file too."""
        self.cells[measured.cell] = measured
        self.write(None)

    def write(self, recommendation: Mapping[str, Any] | None) -> None:
        """Replace the file by what is known now."""
        write_json_atomic(self.path, self.as_json(recommendation))

    def as_json(self, recommendation: Mapping[str, Any] | None) -> dict[str, Any]:
        """Settings, recommendation (None until every cell is measured) and cells."""
        return {
            "kind": KIND,
            "format": FORMAT,
            "settings": dict(self.settings),
            "recommendation": recommendation,
            "cells": [measured.as_json() for measured in self.cells.values()],
        }


def _changes(earlier: Mapping[str, Any], now: Mapping[str, Any], names: Iterable[str]) -> str:
    said = []
    for name in names:
        old, new = earlier.get(name), now[name]
        if isinstance(old, Mapping) and isinstance(new, Mapping):
            keys = [key for key in {**old, **new} if old.get(key) != new.get(key)]
            said.append(", ".join(f"{key} {old.get(key)} then, {new.get(key)} now" for key in keys))
        elif name == "prompts":
            said.append("other prompts")
        elif isinstance(old, list) and isinstance(new, list):
            said.append(f"vllm serve {' '.join(map(str, old))} then, {' '.join(map(str, new))} now")
        else:
            said.append(f"{name} {old} then, {new} now")
    return "; ".join(said)
