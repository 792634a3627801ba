"""Choose one count of drafts: the smallest that repeats cannot tell from the fastest."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import exp, log
from statistics import median
from typing import Any

from .grid import Cell, Context, Grid, speculative_flags
from .result import CellResult

# Two runs of the same server differ by this much, which the repeats of one run do not show.
LEAST_NOISE = 0.01

# Times by count of drafts, one per repeat.
Series = Mapping[int, Sequence[float]]


@dataclass(frozen=True, slots=True)
class Gain:
    """Share by which one count of drafts makes the time per token shorter than another, and its noise."""

    value: float
    noise: float

    @property
    def real(self) -> bool:
        """Whether it exceeds the noise."""
        return self.value > self.noise


def gain(fewer: Sequence[float], more: Sequence[float]) -> Gain:
    """Compute what ``more`` drafts gain over ``fewer``, from the times of the same repeats.

    The repeats ask the same prompts, so they are compared one by one. The gain is 1 minus the median ratio. Its
    noise is the largest distance of a repeat's ratio from that median, and at least 1 %.
    """
    ratios = [b / a for a, b in zip(fewer, more, strict=True)]
    middle = median(ratios)
    return Gain(1 - middle, max(LEAST_NOISE, *(abs(ratio - middle) for ratio in ratios)))


def best(series: Series) -> int:
    """Find the least count of drafts that the fastest (by median) does not beat by more than noise."""
    fastest = _fastest(series)
    return min(
        count
        for count in series
        if count == fastest or (count < fastest and not gain(series[count], series[fastest]).real)
    )


def _fastest(series: Series) -> int:
    return min(series, key=lambda count: (median(series[count]), count))


@dataclass(frozen=True, slots=True)
class Choice:
    """The count of drafts to use.

    Attributes:
        count: the recommended one.
        against: the count it is compared with: 0, or the least measured.
        gain: over that.
        fastest: the count with the least median time, often the same.
    """

    count: int
    against: int
    gain: Gain
    fastest: int


def choose(series: Series) -> Choice:
    """Choose the count of drafts to use."""
    count, least = best(series), min(series)
    return Choice(count, least, gain(series[least], series[count]), _fastest(series))


@dataclass(frozen=True)
class Recommendation:
    """One count for the whole workload, and the best for each part of it alone."""

    overall: Choice
    parts: Mapping[tuple[Context, int], Choice]
    ratios: Mapping[tuple[Context, int], float]
    """Time per token with the count for all, over that with the least count, by context and batch."""
    batches: Mapping[int, Choice]
    """The best for each number of requests in flight, over all contexts."""
    by_batch: bool = False
    """Whether vLLM gets a count for each right."""

    @property
    def schedule(self) -> list[tuple[int, int, int]]:
        """Drafts by batch size; empty where one count is best for all, or vLLM gets one alone right.

        A size that was not measured has what is best for the next larger one. vLLM goes on with the last.
        """
        ranges: list[tuple[int, int, int]] = []
        for batch, choice in sorted(self.batches.items()):
            first = ranges[-1][1] + 1 if ranges else 1
            if ranges and ranges[-1][2] == choice.count:
                ranges[-1] = (ranges[-1][0], batch, choice.count)
            else:
                ranges.append((first, batch, choice.count))
        return ranges if self.by_batch and len(ranges) > 1 else []

    @property
    def flags(self) -> list[str]:
        """Flags of ``vllm serve`` for it: a count for each batch size, or one for all."""
        schedule = self.schedule
        if not schedule:
            return speculative_flags(self.overall.count)
        return speculative_flags(max(count for _, _, count in schedule), schedule)

    def as_json(self) -> dict[str, Any]:
        """Make the object that the result file holds."""
        return {
            "num_speculative_tokens": self.overall.count,
            "arguments": self.flags,
            "by_batch": [list(entry) for entry in self.schedule],
            "against": self.overall.against,
            "gain": round(self.overall.gain.value, 4),
            "noise": round(self.overall.gain.noise, 4),
            "parts": [
                {
                    "context": context,
                    "batch": batch,
                    "num_speculative_tokens": part.count,
                    "fastest": part.fastest,
                    "gain": round(part.gain.value, 4),
                    "noise": round(part.gain.noise, 4),
                    "tpot_ratio": round(self.ratios[context, batch], 4),
                }
                for (context, batch), part in self.parts.items()
            ],
        }


def recommend(grid: Grid, cells: Mapping[Cell, CellResult]) -> Recommendation:
    """Recommend a count of drafts from all cells of a grid.

    The workload's time is the geometric mean over batches and contexts: each counts alike, and by ratios, so a slow
    one does not outweigh the others.
    """
    times: dict[tuple[Context, int], dict[int, list[float]]] = {
        (context, batch): {
            count: [repeat.tpot for repeat in cells[Cell(count, batch, context)].repeats]
            for count in grid.counts
        }
        for context in grid.contexts
        for batch in grid.batches
    }
    overall = choose(_mean(grid, list(times.values())))
    return Recommendation(
        overall,
        {part: choose(series) for part, series in times.items()},
        {
            part: median(series[overall.count]) / median(series[overall.against])
            for part, series in times.items()
        },
        {
            batch: choose(_mean(grid, [times[context, batch] for context in grid.contexts]))
            for batch in grid.batches
        },
        grid.by_batch,
    )


def _mean(grid: Grid, parts: Sequence[Series]) -> dict[int, list[float]]:
    """The geometric mean over parts of the workload, by count of drafts and repeat."""
    return {
        count: [
            exp(sum(log(series[count][repeat]) for series in parts) / len(parts))
            for repeat in range(grid.repeats)
        ]
        for count in grid.counts
    }
