"""From times to one number of drafts: the fastest, and of those that repeats cannot tell from it the smallest."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import exp, log
from statistics import median
from typing import Any

from .grid import Cell, Context, Plan, speculative
from .result import Measured

# What two runs of the same server differ by, that the repeats of one do not show.
LEAST_NOISE = 0.01

Series = Mapping[int, Sequence[float]]


@dataclass(frozen=True, slots=True)
class Gain:
    """How much shorter one number of drafts makes the time per token than another: a share, and its noise."""

    value: float
    noise: float

    @property
    def real(self) -> bool:
        return self.value > self.noise


def gain(fewer: Sequence[float], more: Sequence[float]) -> Gain:
    """What ``more`` gains over ``fewer``, from times of the same repeats of each.

    The repeats ask the same prompts, so they are compared one by one. The gain is 1 less the median ratio; its
    noise is the farthest that a repeat's ratio is from that median, and at least 1 %.
    """
    ratios = [b / a for a, b in zip(fewer, more, strict=True)]
    middle = median(ratios)
    return Gain(1 - middle, max(LEAST_NOISE, *(abs(ratio - middle) for ratio in ratios)))


def best(series: Series) -> int:
    """The least number of drafts that the fastest (by median) does not beat beyond noise."""
    fastest = min(series, key=lambda number: (median(series[number]), number))
    return min(
        number
        for number in series
        if number == fastest or (number < fastest and not gain(series[number], series[fastest]).real)
    )


@dataclass(frozen=True, slots=True)
class Choice:
    """A number of drafts.

    ``against``: the number it is held against (0, or the least measured); ``gain`` over that; ``fastest``: the
    number with the least median time, if that is another.
    """

    number: int
    against: int
    gain: Gain
    fastest: int


def choice(series: Series) -> Choice:
    """The number to use for times by number of drafts, one time a repeat."""
    number, least = best(series), min(series)
    fastest = min(series, key=lambda n: (median(series[n]), n))
    return Choice(number, least, gain(series[least], series[number]), fastest)


@dataclass(frozen=True)
class Recommendation:
    """One number for the whole workload, and what would be best for each part of it alone."""

    overall: Choice
    parts: Mapping[tuple[Context, int], Choice]
    ratios: Mapping[tuple[Context, int], float]
    """Time per token with the number for all, over that with the least number, by context and batch."""

    def as_json(self) -> dict[str, Any]:
        return {
            "num_speculative_tokens": self.overall.number,
            "arguments": speculative(self.overall.number),
            "against": self.overall.against,
            "gain": round(self.overall.gain.value, 4),
            "noise": round(self.overall.gain.noise, 4),
            "parts": [
                {
                    "context": context,
                    "batch": batch,
                    "num_speculative_tokens": part.number,
                    "fastest": part.fastest,
                    "gain": round(part.gain.value, 4),
                    "noise": round(part.gain.noise, 4),
                    "tpot_ratio": round(self.ratios[context, batch], 4),
                }
                for (context, batch), part in self.parts.items()
            ],
        }


def recommend(plan: Plan, cells: Mapping[Cell, Measured]) -> Recommendation:
    """From all cells of ``plan``. The workload's time is the geometric mean over batches and contexts: each counts
    alike, and by ratios, so that a slow one does not outweigh the others."""
    times: dict[tuple[Context, int], dict[int, list[float]]] = {
        (context, batch): {
            number: [repeat.tpot for repeat in cells[Cell(number, batch, context)].repeats]
            for number in plan.numbers
        }
        for context in plan.contexts
        for batch in plan.batches
    }
    whole = {
        number: [
            exp(sum(log(series[number][repeat]) for series in times.values()) / len(times))
            for repeat in range(plan.repeats)
        ]
        for number in plan.numbers
    }
    overall = choice(whole)
    return Recommendation(
        overall,
        {part: choice(series) for part, series in times.items()},
        {
            part: median(series[overall.number]) / median(series[overall.against])
            for part, series in times.items()
        },
    )
