"""What follows from the results of `engine.py` and `linear.py`. No torch here, so that tables are made anywhere.

A file of `engine.py` holds ``settings`` that its runs share, and ``runs`` by variant. A variant is a process.
``plugin`` serves the same prompts in several *ways*: ``stock`` (every linear by vLLM's kernel, through the plugin's
op), ``exact`` and ``fp8``. The others have one way, called like the variant.
``ttft_ms`` is by way and case, a case being the lengths of its prompts: ``2048``, ``4x512``, ``173+390``.
"""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from statistics import median
from typing import NamedTuple

from bench.results import Json

PLUGIN = "plugin"
# The plugin as it comes and with prefill=a8, on the card as it is.
DEFAULT, A8 = "default", "a8"
VARIANTS = (PLUGIN, DEFAULT, A8, "stock", "exact", "fp8", "humming", "machete", "bf16")
WAYS = ("stock", "exact", "fp8")
# With --graphs a pass is recorded with the way it goes, so that each way is a process.
GRAPHED = ("exact", "fp8")
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
    measured = [
        case for run in result["runs"].values() for by in run.get("ttft_ms", {}).values() for case in by
    ]
    return by_size(measured)


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


def stock_column(result: Json) -> Column:
    """vLLM's kernel that the plugin is held against: of the process without it, else of its own."""
    return ("stock" if "stock" in result["runs"] else PLUGIN, "stock")


def first_token_kernels_ms(result: Json, column: Column, case: str) -> float | None:
    """Milliseconds of kernels until every prompt of a case has its first token; None where they were not taken."""
    variant, way = column
    by_case = result["runs"].get(variant, {}).get("ttft_gpu_ms", {})
    total: float | None = by_case.get(case, {}).get(way, {}).get("total")
    return total


def kv_given_up(result: Json, variant: str) -> int | None:
    """Bytes of KV cache that a plugin's process has less than the same without it; None if not comparable."""
    if variant != PLUGIN or not comparable(result, variant, "stock"):
        return None
    ours, theirs = (result["runs"][name].get("kv_cache", {}).get("bytes") for name in (variant, "stock"))
    return None if ours is None or theirs is None else int(theirs) - int(ours)


# What a kernel's name says it does; the first that matches.
_KINDS = {
    "attention": "attention|flash",
    "unpacking": "^_expand$",
    "activations to e4m3": "scaled_fp8_quant|^_quantize_(rows|tokens)$",
    "copies of results": "direct_copy_kernel",
    "GEMMs": "marlin::Marlin|machete|nvjet|cutlass",
}
KINDS = ("GEMMs", "unpacking", "activations to e4m3", "copies of results", "attention")


def by_kind(kernels: Json) -> dict[str, float]:
    """Milliseconds by what kernels do, those of no kind and those that were not named as ``all others``."""
    kinds = dict.fromkeys(KINDS, 0.0)
    for name, ms in kernels["kernels"].items():
        # An output or a Gated-DeltaNet kernel that Inductor wrote has the GEMM that it follows in its name.
        if name.startswith("triton_"):
            continue
        kind = next((kind for kind, pattern in _KINDS.items() if re.search(pattern, name)), None)
        if kind:
            kinds[kind] += ms
    return {**kinds, "all others": kernels["total"] - sum(kinds.values())}


class Target(NamedTuple):
    """Time to first token of a way of the plugin over that of a process without it, at most."""

    way: str
    base: str
    case: str
    most: float


TARGETS = (
    Target("exact", "stock", "8192", 0.60),
    Target("fp8", "stock", "8192", 0.40),
    Target("exact", "stock", "1024", 0.72),
    Target("fp8", "stock", "1024", 0.52),
    Target("exact", "bf16", "8192", 1.05),
    Target("fp8", "bf16", "8192", 0.70),
    Target("fp8", "machete", "8192", 0.65),
)
# In a table: parts of `quality.py`'s result.
WRITTEN = {"everywhere": "every token", "context": "scored behind 256 tokens"}
# A decode step over that of the same kernel without the plugin.
STEP = 1.01


# Fused linears of the 27B: k and n of x ``[M, k]`` times W ``[k, n]``, and how many layers have it.
MODULES = {
    "qkv": (5120, 14336, 16),
    "qkvz": (5120, 16384, 48),
    "o/out": (6144, 5120, 64),
    "gate_up": (5120, 34816, 64),
    "down": (17408, 5120, 64),
}
LAYERS = {name: layers for name, (_, _, layers) in MODULES.items()}
# Tokens of `kernels.py`.
KERNEL_ROWS = (1, 2, 3, 4, 8, 16, 32, 48, 64, 96, 128, 256, 512, 1024, 2048, 4096, 8192)
_NAMES = {"stock": "stock", "plugin": "plugin, exact", "plugin_fp8": "plugin, fp8", "cublas": "dense"}


def kernel_passes(result: Json) -> list[Json]:
    """Milliseconds of the linears of 64 layers by number of tokens and kernel, from a file of `kernels.py`."""
    rows = []
    for tokens in map(str, KERNEL_ROWS):
        row: Json = {"m": int(tokens)}
        for name in ("Marlin", "Machete", "Humming"):
            each = [
                (shape["us"][tokens].get(name), LAYERS[module]) for module, shape in result["shapes"].items()
            ]
            if all(us is not None for us, _ in each):
                row[name] = sum(us * layers for us, layers in each) / 1e3
        rows.append(row)
    return rows


def us(row: Json, name: str) -> float | None:
    """Microseconds a call."""
    entry = row["times"].get(name)
    return None if entry is None else float(entry["us"])


def passes(result: Json) -> dict[str, dict[int, dict[str, float]]]:
    """By layout and number of tokens: milliseconds that the quantized linears of 64 layers take, by variant.

    Numbers of tokens and variants that some shape lacks are left out.
    """
    by_layout: dict[str, dict[int, dict[str, float]]] = {}
    for layout in dict.fromkeys(shape["shape"].split()[0] for shape in result["shapes"]):
        shapes = [shape for shape in result["shapes"] if shape["shape"].startswith(layout + " ")]
        if {shape["module"] for shape in shapes} != set(LAYERS):
            continue
        by_m = [{row["m"]: row for row in shape["rows"]} for shape in shapes]
        for m in sorted(set.intersection(*map(set, by_m))):
            rows = [rows[m] for rows in by_m]
            for name in _NAMES:
                each = [us(row, name) for row in rows]
                if None not in each:
                    total = sum(
                        LAYERS[s["module"]] * t for s, t in zip(shapes, each, strict=True) if t is not None
                    )
                    by_layout.setdefault(layout, {}).setdefault(m, {})[name] = total / 1e3
    return by_layout


def worst(result: Json, *, elsewhere: bool = False) -> list[tuple[float, str]]:
    """The plugin's time over stock's at its worst, for each way: ratio, and where.

    ``elsewhere``: of calls with as many tokens as take another route than stock's kernel.
    """
    highest = []
    for name, paths in (("plugin", ("exact",)), ("plugin_fp8", ("exact", "fp8"))):
        ratios = [
            (time / stock, f"{_NAMES[name]}: {shape['shape']}, M = {row['m']}")
            for shape in result["shapes"]
            for row in shape["rows"]
            if (time := us(row, name)) is not None and (stock := us(row, "stock"))
            if not elsewhere or any(row["m"] >= (shape["starts"][path] or math.inf) for path in paths)
        ]
        if ratios:
            highest.append(max(ratios))
    return highest
