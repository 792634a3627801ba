"""What was wanted of the whole models, and what came of it."""

from __future__ import annotations

from typing import NamedTuple

from bench.prefill.engine_notes import environments, noted
from bench.prefill.engine_results import (
    GRAPHED,
    PLUGIN,
    WITHOUT,
    Column,
    cases,
    comparable,
    first_token_kernels_ms,
    kernels_ms,
    step_ms,
    stock_column,
    ttft_ratio,
)
from bench.results import Json
from bench.tables import table


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
# A decode step over that of the same kernel without the plugin.
STEP = 1.01


def targets_table(result: Json) -> str:
    """A row a target: the ratio wanted, and those on the clock and of kernels, which leave out the host."""
    rows = []
    for target in TARGETS:
        ours: Column = (PLUGIN, target.way)
        base: Column = (target.base, target.base)
        if target.base == WITHOUT[PLUGIN]:
            base = stock_column(result, PLUGIN)
        clock = ttft_ratio(result, ours, base, target.case)
        kernels = _of_kernels(result, ours, base, target.case)
        what = f"first token, {target.way} / {target.base}{', in turns' if base[0] == PLUGIN else ''}"
        rows.append(
            [what, target.case, f"{target.most:.2f}", *(_met(r, target.most) for r in (clock, kernels))]
        )
    runs = result["runs"]
    if comparable(result, PLUGIN, "stock"):
        for batch in runs[PLUGIN].get("step_ms", {}):
            ratios = _of_a_step(runs[PLUGIN], runs["stock"], batch)
            if ratios[1] is not None:
                rows.append(
                    [f"decode step, batch {batch}", "", f"{STEP:.2f}", *(_met(r, STEP) for r in ratios)]
                )
    header = ["", "tokens", "at most", "on the clock", "of kernels"]
    return noted(table(header, rows), environments(result))


def graphs_table(result: Json) -> str:
    """The same of ``--graphs``, where every way is a process, for each number of tokens that was recorded."""
    runs, rows = result["runs"], []
    most = {(target.way, target.case): target.most for target in TARGETS if target.base == "stock"}
    ways = [way for way in GRAPHED if comparable(result, way, "stock")]
    for case in cases(result):
        for way in ways:
            wanted = most.get((way, case))
            ratios = (
                ttft_ratio(result, (way, way), ("stock", "stock"), case),
                _of_kernels(result, (way, way), ("stock", "stock"), case),
            )
            at_most = "" if wanted is None else f"{wanted:.2f}"
            rows.append([f"first token, {way} / stock", case, at_most, *(_met(r, wanted) for r in ratios)])
    for way in ways:
        for batch in runs[way].get("step_ms", {}):
            ratios = _of_a_step(runs[way], runs["stock"], batch)
            what = f"decode step, {way} / stock, batch {batch}"
            rows.append([what, "", f"{STEP:.2f}", *(_met(r, STEP) for r in ratios)])
    header = ["", "tokens", "at most", "on the clock", "of kernels"]
    return noted(table(header, rows), environments(result))


def _of_a_step(run: Json, base: Json, batch: str) -> tuple[float | None, float | None]:
    both = [(take(run, batch), take(base, batch)) for take in (step_ms, kernels_ms)]
    clock, kernels = (None if one is None or not other else one / other for one, other in both)
    return clock, kernels


def _of_kernels(result: Json, ours: Column, base: Column, case: str) -> float | None:
    if not comparable(result, ours[0], base[0]):
        return None
    one, other = (first_token_kernels_ms(result, column, case) for column in (ours, base))
    return None if one is None or not other else one / other


def _met(ratio: float | None, most: float | None) -> str:
    return "" if ratio is None else f"{ratio:.3f}{', met' if most is not None and ratio <= most else ''}"
