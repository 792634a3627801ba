"""What was measured and what follows from it: no torch here, so that the report runs anywhere.

`gemm.json` holds microseconds a call by module, rows (M) and variant; `engine.json` milliseconds a decode step by
variant and batch; `agreement.json` (a CPU) and `served.json` (a GPU) what a served act-order checkpoint computes,
beside its dequantized weights.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any

HERE = Path(__file__).parent
GEMM, ENGINE, AGREEMENT = HERE / "gemm.json", HERE / "engine.json", HERE / "agreement.json"
SERVED = HERE / "served.json"
VARIANTS = ("none", "stock", "ours", "ours-gathered")
# Ours may cost at most this share of what stock act order costs.
TARGET = 0.5


@dataclass(frozen=True, slots=True)
class Module:
    """A fused linear of the 27B: x ``[M, k]`` times W ``[k, n]``; ``before`` names what computes x."""

    name: str
    k: int
    n: int
    layers: int
    before: str


# o_proj and out_proj are one shape, but different operations make their input.
MODULES = (
    Module("qkv", 5120, 14336, 16, "norm"),
    Module("qkvz", 5120, 16384, 48, "norm_twice"),
    Module("o", 6144, 5120, 16, "gate"),
    Module("out", 6144, 5120, 48, "gated_norm"),
    Module("gate_up", 5120, 34816, 64, "norm"),
    Module("down", 17408, 5120, 64, "silu_mul"),
)
# Its input comes out in order: the columns of gate_up are permuted on load.
FOLDED = "down"


# Whose norm writes in order: see `claim.FOLD_NORMS`, and `norms` for which norms those are.
IN_ORDER: tuple[str, ...] = ("qkv", "qkvz", "gate_up")


def form_of(module: str, measured: Iterable[str] | None = None) -> str:
    """How the plugin permutes what a module reads, where that is compiled, by `before.FUNCTIONS`.

    ``measured``: variants that there are times of. Without one of a norm in order (before there was any), the
    gather that the plugin has where norms are as they were: see `method._BEHIND_A_NORM`.
    """
    if module in IN_ORDER and (measured is None or "before+in_order" in measured):
        return "in_order"
    return "strided" if module in ("qkv", "gate_up") else "unchecked"


def extras(row: Mapping[str, Any]) -> dict[str, float]:
    """Microseconds a call that act order adds, of one module and M.

    ``stock`` and ``ours`` as calls of their own; ``stock_compiled``, ``ours_compiled`` and
    ``checked_compiled`` after the compiled operation that computes the input, with what the gather adds to
    that operation: as the plugin says it, and by ``index_select``.
    """
    us, folded = row["us"], row["module"] == FOLDED
    found = {"stock": us["stock"] - us["none"], "ours": 0.0 if folded else us["ours"] - us["none"]}
    if "before+none" in us:
        found["stock_compiled"] = us["before+stock"] - us["before+none"]
        for name, form in (("ours", f"before+{form_of(row['module'], us)}"), ("checked", "before+ours")):
            if folded or form in us:
                found[f"{name}_compiled"] = 0.0 if folded else us[form] - us["before+none"]
    return found


def totals(rows: Iterable[Mapping[str, Any]]) -> dict[int, dict[str, float]]:
    """By M: microseconds that act order adds to a pass through all 64 layers, and ours over stock.

    An M that lacks a module is left out: its sum would be of other layers. Ratios are left out where stock adds
    nothing.
    """
    layers = {module.name: module.layers for module in MODULES}
    by_m: dict[int, list[Mapping[str, Any]]] = {}
    for row in rows:
        by_m.setdefault(int(row["m"]), []).append(row)
    found: dict[int, dict[str, float]] = {}
    for m, group in sorted(by_m.items()):
        if sorted(row["module"] for row in group) != sorted(layers):
            continue
        each = [(layers[row["module"]], extras(row)) for row in group]
        names = set.intersection(*(set(extra) for _, extra in each))
        total = {name: sum(count * extra[name] for count, extra in each) for name in names}
        total["none"] = sum(layers[row["module"]] * row["us"]["none"] for row in group)
        for name in ("ours", "ours_compiled"):
            stock = total.get(name.replace("ours", "stock"), 0.0)
            if name in total and stock > 0:
                total[f"ratio_{name}"] = total[name] / stock
        found[m] = total
    return found


def step_ms(run: Mapping[str, Any], batch: int | str) -> float:
    """Median milliseconds a decode step of one variant at one batch size."""
    times: list[float] = run["step_ms"][str(batch)]
    return median(times)


def kernels_ms(run: Mapping[str, Any], batch: int | str) -> float | None:
    """Milliseconds a decode step by its kernels alone, without the host; None where that was not taken."""
    found: float | None = run.get("step_gpu_ms", {}).get(str(batch), {}).get("total")
    return found


def engine_extras(result: Mapping[str, Any]) -> dict[str, dict[str, float]]:
    """By batch: milliseconds a step that the others add to ``none``, and ours over stock's.

    By their kernels where both were taken so, else on the clock. Only of variants that were run; empty without
    ``none``.
    """
    runs = result["runs"]
    if "none" not in runs:
        return {}
    found: dict[str, dict[str, float]] = {}
    for batch in runs["none"]["step_ms"]:
        added = {}
        for name in (name for name in runs if name != "none"):
            base, mine = kernels_ms(runs["none"], batch), kernels_ms(runs[name], batch)
            if base is None or mine is None:
                base, mine = step_ms(runs["none"], batch), step_ms(runs[name], batch)
            added[name] = mine - base
        if {"stock", "ours"} <= added.keys() and added["stock"] > 0:
            added["ratio"] = added["ours"] / added["stock"]
        found[batch] = added
    return found


def same_tokens(one: Mapping[str, Any], other: Mapping[str, Any]) -> tuple[int, int]:
    """Of the prompts of two runs: how many have the same first token, and how many there are."""
    pairs = list(zip(one["tokens"], other["tokens"], strict=True))
    return sum(a[0] == b[0] for a, b in pairs), len(pairs)
