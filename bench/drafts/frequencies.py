"""Whether two ways of sampling draw the same tokens: a chi-square test of homogeneity."""

from __future__ import annotations

from collections import Counter
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

# Below so many expected counts the statistic is no longer distributed as chi-square (Cochran's rule).
_LEAST_EXPECTED = 5.0


@dataclass(frozen=True, slots=True)
class Homogeneity:
    """The statistic over all groups, its degrees of freedom, and the probability of as much or more by chance."""

    statistic: float
    freedom: int
    p: float


Sample = Sequence[Hashable] | Mapping[Any, int]


def homogeneity(one: Mapping[str, Sample], other: Mapping[str, Sample]) -> Homogeneity:
    """Two samples of every group (a prompt), each drawn independently: are they of one distribution?

    A sample is what was drawn, or how often each outcome was.

    Outcomes that are expected less than five times in either sample are put together. The statistics of groups add
    up, as do their degrees of freedom.

    Raises:
        ValueError: the groups differ, or nothing is left to compare.
    """
    from scipy.stats import chi2

    if one.keys() != other.keys():
        raise ValueError("the samples are of other prompts")
    statistic, freedom = 0.0, 0
    for group in one:
        found, cells = _one(Counter(one[group]), Counter(other[group]))
        statistic += found
        freedom += max(0, cells - 1)
    if freedom == 0:
        raise ValueError("every prompt has one outcome alone")
    return Homogeneity(statistic, freedom, float(chi2.sf(statistic, freedom)))


def _one(one: Counter[Hashable], other: Counter[Hashable]) -> tuple[float, int]:
    sizes = sum(one.values()), sum(other.values())
    whole = sum(sizes)
    cells, rest = [], [0, 0]
    for outcome in one.keys() | other.keys():
        counts = one[outcome], other[outcome]
        if min(sizes) * sum(counts) / whole >= _LEAST_EXPECTED:
            cells.append(counts)
        else:
            rest = [rest[0] + counts[0], rest[1] + counts[1]]
    if min(sizes) * sum(rest) / whole >= _LEAST_EXPECTED:
        cells.append((rest[0], rest[1]))
    statistic = sum(
        (count - size * sum(counts) / whole) ** 2 / (size * sum(counts) / whole)
        for counts in cells
        for count, size in zip(counts, sizes, strict=True)
    )
    return statistic, len(cells)
