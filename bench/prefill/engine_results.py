"""What `engine.py` writes, and what follows from it: no torch here, so that the tables are made anywhere.

One file holds ``settings`` that its runs share, and ``runs`` by variant. A variant is a process; ``plugin`` and
``plugin-machete`` serve the same prompts in several *ways*: ``stock`` (every linear by vLLM's kernel, through the
plugin's op), ``exact`` and ``fp8``. The others have one way, called like the variant. ``ttft_ms`` is by way and
case, a case being the lengths of its prompts: ``2048``, ``4x512``, ``173+390``.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from statistics import median

from bench.results import Json

PLUGIN, MACHETE_PLUGIN = "plugin", "plugin-machete"
VARIANTS = (PLUGIN, MACHETE_PLUGIN, "stock", "exact", "fp8", "machete", "bf16")
WAYS = ("stock", "exact", "fp8")
# With --graphs a pass is recorded with the way it goes, so that each way is a process.
GRAPHED = ("exact", "fp8")
# What the plugin's processes are held against: the same kernel without it.
WITHOUT = {PLUGIN: "stock", MACHETE_PLUGIN: "machete"}
# In a process of the plugin, every linear by vLLM's kernel.
IN_TURNS = "stock"
Column = tuple[str, str]


def lengths(case: str) -> tuple[int, ...]:
    """Tokens of each prompt of a case."""
    if "x" in case:
        count, length = case.split("x")
        return (int(length),) * int(count)
    return tuple(int(length) for length in case.split("+"))


def by_size(cases: Sequence[str]) -> list[str]:
    """Single prompts first, by their tokens; then batches."""
    return sorted(set(cases), key=lambda case: (len(lengths(case)) > 1, sum(lengths(case)), case))


def columns(result: Json) -> list[Column]:
    """Every (variant, way) that has times, variants in their order."""
    runs = result["runs"]
    return [(name, way) for name in VARIANTS if name in runs for way in runs[name].get("ttft_ms", {})]


def cases(result: Json) -> list[str]:
    """All that any run has."""
    found = [case for run in result["runs"].values() for by in run.get("ttft_ms", {}).values() for case in by]
    return by_size(found)


def ttft_ms(result: Json, column: Column, case: str) -> float | None:
    """Median milliseconds until every prompt of a case has its first token; None where it was not measured."""
    variant, way = column
    times = result["runs"].get(variant, {}).get("ttft_ms", {}).get(way, {}).get(case)
    return median(times) if times else None


def comparable(result: Json, one: str, other: str) -> bool:
    """Whether two runs are there and were made on the same kind of card with the same versions."""
    runs = result["runs"]
    if one not in runs or other not in runs:
        return False
    return bool(runs[one].get("environment") == runs[other].get("environment"))


def ttft_ratio(result: Json, column: Column, base: Column, case: str) -> float | None:
    """``column`` over ``base``; None where either is missing or they are not `comparable`."""
    if not comparable(result, column[0], base[0]):
        return None
    times, against = ttft_ms(result, column, case), ttft_ms(result, base, case)
    return times / against if times is not None and against else None


def stock_column(result: Json, variant: str) -> Column:
    """vLLM's kernel that a plugin's process is held against: in a process without it if there is one, or turns."""
    base = WITHOUT[variant]
    return (base, base) if base in result["runs"] else (variant, IN_TURNS)


def first_token_kernels_ms(result: Json, column: Column, case: str) -> float | None:
    """Milliseconds of kernels until every prompt of a case has its first token; None where they were not taken."""
    variant, way = column
    by_case = result["runs"].get(variant, {}).get("ttft_gpu_ms", {})
    found: float | None = by_case.get(case, {}).get(way, {}).get("total")
    return found


def step_ms(run: Json, batch: str) -> float | None:
    """Median milliseconds a decode step."""
    times = run.get("step_ms", {}).get(batch)
    return median(times) if times else None


def kernels_ms(run: Json, batch: str) -> float | None:
    """Milliseconds of kernels in a decode step; None where they were not taken."""
    found: float | None = run.get("step_gpu_ms", {}).get(batch, {}).get("total")
    return found


def kv_given_up(result: Json, variant: str) -> int | None:
    """Bytes of KV cache that a plugin's process has less than the same without it; None if not comparable."""
    base = WITHOUT.get(variant)
    if base is None or not comparable(result, variant, base):
        return None
    ours, theirs = (result["runs"][name].get("kv_cache", {}).get("bytes") for name in (variant, base))
    return None if ours is None or theirs is None else int(theirs) - int(ours)


def first_differences(one: Sequence[Sequence[int]], other: Sequence[Sequence[int]]) -> list[int | None]:
    """For each prompt the number of tokens before the two differ; None where they are alike to the end."""
    found: list[int | None] = []
    for ours, theirs in zip(one, other, strict=True):
        apart = [i for i, (a, b) in enumerate(zip(ours, theirs, strict=True)) if a != b]
        found.append(apart[0] if apart else None)
    return found


def digest(tokens: Sequence[Sequence[int]]) -> str:
    """Of all tokens in their order, 16 hex digits."""
    return hashlib.sha256(json.dumps([list(ids) for ids in tokens]).encode()).hexdigest()[:16]
