"""Figures of cells with intervals, and ratios of two; by bootstrap over requests and repeats.

Requests of a burst are drawn with replacement, and so are its repeats. Of two receipts with the same prompts the
same requests are drawn from both, so that what the prompts differ by cancels out.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    from .record import Repeat

Array: TypeAlias = NDArray[np.float64]
LEVEL, RESAMPLES, SEED = 0.95, 2000, 0


@dataclass(frozen=True, slots=True)
class Estimate:
    """A figure and its 95 % interval; the ends are None where there is one value alone."""

    value: float
    low: float | None
    high: float | None

    def as_json(self) -> dict[str, float | None]:
        """Make its object in a file."""
        return {
            name: None if at is None else float(f"{at:.5g}")
            for name, at in (("value", self.value), ("low", self.low), ("high", self.high))
        }


def _table(repeats: Sequence[Repeat], of: Callable[[Repeat], Sequence[float | None]]) -> Array:
    """``[repeats, requests]`` of a figure of each request; NaN where a request has none."""
    rows = [[np.nan if value is None else value for value in of(repeat)] for repeat in repeats]
    width = max(map(len, rows))
    return np.array([row + [np.nan] * (width - len(row)) for row in rows], dtype=np.float64)


def _ends(draws: Array) -> tuple[float | None, float | None]:
    finite = draws[np.isfinite(draws)]
    if not len(finite):
        return None, None
    return float(np.quantile(finite, (1 - LEVEL) / 2)), float(np.quantile(finite, (1 + LEVEL) / 2))


def median(repeats: Sequence[Repeat], of: Callable[[Repeat], Sequence[float | None]]) -> Estimate | None:
    """Return the median over the requests of all repeats; None where no request has the figure."""
    table = _table(repeats, of)
    if not np.isfinite(table).any():
        return None
    value = float(np.nanmedian(table))
    rng = np.random.default_rng(SEED)
    count, width = table.shape
    if count * width < 2:
        return Estimate(value, None, None)
    rows = rng.integers(count, size=(RESAMPLES, count))
    columns = rng.integers(width, size=(RESAMPLES, width))
    drawn = table[rows[:, :, None], columns[:, None, :]].reshape(RESAMPLES, -1)
    drawn = drawn[np.isfinite(drawn).any(axis=1)]
    return Estimate(value, *_ends(np.nanmedian(drawn, axis=1)))


def over_repeats(values: Sequence[float]) -> Estimate:
    """Return the mean of a figure of each repeat."""
    table = np.array(values, dtype=np.float64)
    if len(table) < 2:
        return Estimate(float(table.mean()), None, None)
    rng = np.random.default_rng(SEED)
    drawn = table[rng.integers(len(table), size=(RESAMPLES, len(table)))].mean(axis=1)
    return Estimate(float(table.mean()), *_ends(drawn))


def acceptance_length(repeats: Sequence[Repeat]) -> Estimate | None:
    """Return tokens a verification step; None without drafts."""
    counted = [(r.counters.drafts, r.counters.accepted) for r in repeats if r.counters.drafts]
    if not counted:
        return None
    table = np.array(counted, dtype=np.float64)
    value = 1 + table[:, 1].sum() / table[:, 0].sum()
    if len(table) < 2:
        return Estimate(float(value), None, None)
    rng = np.random.default_rng(SEED)
    drawn = table[rng.integers(len(table), size=(RESAMPLES, len(table)))].sum(axis=1)
    return Estimate(float(value), *_ends(1 + drawn[:, 1] / drawn[:, 0]))


def acceptance_by_position(repeats: Sequence[Repeat]) -> list[float]:
    """Return the share of drafts whose token at each position was accepted, over all repeats."""
    drafts = sum(repeat.counters.drafts for repeat in repeats)
    if not drafts:
        return []
    positions = max(len(repeat.counters.per_position) for repeat in repeats)
    return [
        sum(r.counters.per_position[at] for r in repeats if at < len(r.counters.per_position)) / drafts
        for at in range(positions)
    ]


def log_ratios(
    a: Sequence[Repeat], b: Sequence[Repeat], of: Callable[[Repeat], Sequence[float | None]]
) -> tuple[Array, Array]:
    """Return logarithms ``[repeats, requests]`` of a figure in two receipts, for :func:`ratio`."""
    with np.errstate(divide="ignore", invalid="ignore"):
        return np.log(_table(a, of)), np.log(_table(b, of))


def ratio(pairs: Sequence[tuple[Array, Array]]) -> Estimate | None:
    """Return the geometric mean of a figure in ``b`` over that in ``a``, request by request.

    Args:
        pairs: logarithms of each cell, ``[repeats, requests]`` of ``a`` and of ``b``. Cells weigh alike. With one
            column the figure is of a whole repeat, and only repeats are drawn.

    Returns:
        None where the two have no request in common that has the figure.
    """
    rng = np.random.default_rng(SEED)
    values: list[float] = []
    draws: list[Array] = []
    spread = False
    for a, b in pairs:
        width = min(a.shape[1], b.shape[1])
        a, b = a[:, :width], b[:, :width]
        keep = np.isfinite(a).any(axis=0) & np.isfinite(b).any(axis=0)
        a, b = a[:, keep], b[:, keep]
        if not a.shape[1]:
            continue
        values.append(float((np.nanmean(b, axis=0) - np.nanmean(a, axis=0)).mean()))
        columns = rng.integers(a.shape[1], size=(RESAMPLES, a.shape[1]))
        drawn = _drawn(b, columns, rng) - _drawn(a, columns, rng)
        draws.append(np.nanmean(drawn, axis=1))
        spread = spread or a.size > 1 or b.size > 1
    if not values:
        return None
    value = float(np.exp(np.mean(values)))
    if not spread:
        return Estimate(value, None, None)
    return Estimate(value, *_ends(np.exp(np.mean(draws, axis=0))))


def _drawn(table: Array, columns: NDArray[np.int64], rng: np.random.Generator) -> Array:
    """``[draws, requests]``: means over drawn repeats, of drawn requests; NaN where no drawn repeat has one."""
    rows = rng.integers(len(table), size=(RESAMPLES, len(table)))
    picked = table[rows[:, :, None], columns[:, None, :]]
    counts = np.isfinite(picked).sum(axis=1)
    with np.errstate(invalid="ignore"):
        means: Array = np.where(counts > 0, np.nansum(picked, axis=1) / np.maximum(counts, 1), np.nan)
    return means


def summary_json(repeats: Sequence[Repeat]) -> dict[str, Any] | None:
    """Return a cell's figures; None without a repeat."""
    if not repeats:
        return None
    tpot = median(repeats, lambda repeat: repeat.tpot_ms)
    ttft = median(repeats, lambda repeat: repeat.ttft_ms)
    length = acceptance_length(repeats)
    assert ttft is not None
    queries = sum(repeat.counters.cache_queries for repeat in repeats)
    hits = sum(repeat.counters.cache_hits for repeat in repeats)
    memory = [gpu["memory_mib"] for repeat in repeats for gpu in repeat.gpu if "memory_mib" in gpu]
    return {
        "requests": len(repeats[0].ttft_ms),
        "repeats": len(repeats),
        "prompt_tokens": float(np.median([n for r in repeats for n in r.prompt_tokens])),
        "output_tokens": float(np.mean([n for r in repeats for n in r.output_tokens])),
        "ttft_ms": ttft.as_json(),
        "tpot_ms": None if tpot is None else tpot.as_json(),
        "itl_ms": {
            share: float(f"{np.mean([r.itl_ms[share] for r in repeats if share in r.itl_ms]):.5g}")
            for share in ("0.5", "0.95", "0.99")
            if any(share in r.itl_ms for r in repeats)
        },
        "tokens_per_second": over_repeats([r.throughput for r in repeats]).as_json(),
        "acceptance_length": None if length is None else length.as_json(),
        "acceptance_by_position": [round(share, 4) for share in acceptance_by_position(repeats)],
        "prefix_cache_hit_rate": round(hits / queries, 4) if queries else None,
        "gpu_memory_mib": max(memory, default=None),
    }
