"""The page's tables and picture: what drafts cost a step, what they keep, and what they read. No torch here.

python -m bench.pages drafts
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from statistics import median
from typing import Any

from bench.pages import Page
from bench.results import Json
from bench.tables import Column, table, where

HERE = Path(__file__).parent
# What a draft reads of the 27B in the checkpoint's own weights: shapes [n, k] of the MTP layer and the output head.
MTP_LINEARS = {
    "fc": (5120, 10240),
    "qkv": (14336, 5120),
    "o": (5120, 6144),
    "gate_up": (34816, 5120),
    "down": (5120, 17408),
}
HEAD_WIDTH, VOCABULARY = 5120, 248320
# Precision of linears and head where they are not the same.
_MIXED = {
    "stock": ("bf16", "bf16"),
    "stock:fp8": ("bf16", "fp8"),
    # What `auto` was before it copied the head, and where it makes no copy.
    "w8, own head": ("w8", "bf16"),
    "humming": ("bf16", "bf16"),
    "humming:fp8": ("bf16", "fp8"),
    "auto": ("w8", "w4"),
}
_BITS = {"bf16": 16.0, "fp8": 8.0, "w4": 4.0 + 16.0 / 32, "w8": 8.0 + 16.0 / 128}
# Linears that a precision has in another.
_OTHERWISE = {("w4", "fc"): "w8"}


def tokens_a_step(run: Mapping[str, Any]) -> float:
    """Mean over all verification steps: the accepted drafts, and the token that the target adds."""
    steps = sum(domain["steps"] for domain in run["greedy"].values())
    return 1 + sum(sum(domain["accepted"]) for domain in run["greedy"].values()) / steps


def by_position(run: Mapping[str, Any]) -> list[float]:
    """Share of steps in which the first, the second, … draft was accepted."""
    domains = list(run["greedy"].values())
    steps = sum(domain["steps"] for domain in domains)
    return [sum(counts) / steps for counts in zip(*(d["accepted"] for d in domains), strict=True)]


def replies(run: Mapping[str, Any]) -> list[str]:
    """Digests of all greedy replies, domain by domain."""
    return [reply for domain in sorted(run["greedy"]) for reply in run["greedy"][domain]["replies"]]


def same_replies(one: Mapping[str, Any], other: Mapping[str, Any]) -> tuple[int, int]:
    """Greedy replies that are alike to the last token in two ways, and how many there are."""
    pairs = list(zip(replies(one), replies(other), strict=True))
    return sum(a == b for a, b in pairs), len(pairs)


def lost(run: Mapping[str, Any], stock: Mapping[str, Any], none: Mapping[str, Any]) -> int:
    """Replies that are those of no speculation with vLLM's drafts, and not in this way."""
    each = zip(replies(none), replies(stock), replies(run), strict=True)
    return sum(a == b and a != c for a, b, c in each)


def acceptance_table(result: Json) -> str:
    """Acceptance and text, a row a way."""
    runs = result["runs"]
    none, stock = runs.get("none"), runs.get("bf16")
    rows = []
    for way, run in runs.items():
        row: Json = {"way": way}
        if way != "none":
            row["accepted"] = by_position(run)
            row["length"] = tokens_a_step(run)
            row["over"] = stock and row["length"] / tokens_a_step(stock)
            row["same"] = none and same_replies(none, run)
            row["lost"] = lost(run, stock, none) if none and stock else None
            row["tested"] = run["sampled"] or None
        rows.append(row)
    columns = [
        Column("drafts", "way"),
        Column("accepted, by position", "accepted", lambda shares: " ".join(f"{s:.3f}" for s in shares)),
        Column("tokens a step", "length", ".3f"),
        Column("over bf16", "over", ".4f"),
        Column("greedy as without drafts", "same", lambda same: "{} of {}".format(*same)),
        Column("where bf16's are, and these not", "lost"),
        Column(
            "sampled: chi-square p",
            "tested",
            lambda t: f"{t['p']:.3f} ({t['statistic']:.0f} over {t['freedom']}, {t['draws']:,} draws)",
        ),
    ]
    return table(columns, rows, where(next(iter(runs.values()))["environment"]))


def drafts_of(way: str) -> tuple[str, int]:
    """The way without its count of drafts, and that: ``auto@3`` has three, ``auto`` two, ``none`` none."""
    name, _, count = way.partition("@")
    return name, 0 if name == "none" else int(count or 2)


def bytes_of_a_draft(way: str) -> dict[str, int]:
    """Bytes of weights that one draft reads: of the MTP layer's linears, and of the output head."""
    name = drafts_of(way)[0]
    precision, _, count = name.partition(":")
    of_linears, of_head = _MIXED.get(name, (precision, precision))
    bits = {linear: _BITS[_OTHERWISE.get((of_linears, linear), of_linears)] for linear in MTP_LINEARS}
    linears = sum(n * k * bits[linear] for linear, (n, k) in MTP_LINEARS.items())
    tokens = int(count) if count.isdigit() else VOCABULARY
    return {"linears": int(linears / 8), "head": int(tokens * HEAD_WIDTH * _BITS[of_head] / 8)}


def gpu_ms(run: Mapping[str, Any], batch: str) -> float | None:
    """Milliseconds of kernels in a step."""
    total: float | None = run["steps"][batch]["gpu_ms"]
    return total


def drafts_ms(result: Json, way: str, batch: str) -> float | None:
    """Milliseconds of kernels that drafts add to a step; None where `none` or this was not timed on a GPU."""
    runs = result["runs"]
    if way == "none" or "none" not in runs:
        return None
    base, own = gpu_ms(runs["none"], batch), gpu_ms(runs[way], batch)
    return None if base is None or own is None else own - base


def _over(
    result: Json, figure: Callable[[Json], float | None], run: Json, other: str = "stock"
) -> float | None:
    """A figure over that of another way."""
    own, base = figure(run), figure(result["runs"][other]) if other in result["runs"] else None
    return own / base if own and base else None


def _rows(result: Json) -> list[Json]:
    return [{"way": way, **run} for way, run in result["runs"].items()]


def _caption(result: Json) -> str:
    place = where(next(iter(result["runs"].values()))["environment"])
    return f"{place}; {result['settings']['layers']} layers, two drafts a step or as many as behind @"


def step_table(result: Json) -> str:
    """Milliseconds a step beside vLLM's own, on the clock and of kernels."""
    columns = [Column("drafts", "way")]
    base = "stock" if "stock" in result["runs"] else next(iter(result["runs"]))
    for batch in next(iter(result["runs"].values()))["steps"]:
        for title, figure in (
            ("on the clock", lambda run, b=batch: median(run["steps"][b]["ms"])),
            ("of kernels", lambda run, b=batch: gpu_ms(run, b)),
        ):
            columns += [
                Column(f"batch {batch}: ms {title}", figure, ".2f"),
                Column(f"over {base}", lambda r, f=figure: _over(result, f, r, base), ".3f"),
            ]
    return table(columns, _rows(result), _caption(result))


def served_table(result: Json) -> str:
    """Tokens a second at published acceptance, by batch and context, over stock's and over stock's best flag."""
    columns = [Column("drafts", "way")]
    for case in next(iter(result["runs"].values())).get("served", ()):

        def speed(run: Json, case: str = case) -> float:
            return float(run["served"][case]["tokens_a_second"])

        columns += [
            Column(f"{case}: tokens/s", speed, ".0f"),
            Column("over stock", lambda r, f=speed: _over(result, f, r, "stock"), ".2f"),
            Column("over humming:fp8", lambda r, f=speed: _over(result, f, r, "humming:fp8"), ".2f"),
        ]
    return table(columns, _rows(result), "Requests x tokens of context; all requests decode")


def bytes_table(result: Json) -> str:
    """What the drafts of a step read, what that takes at the bandwidth of the card, and what they took."""
    runs = result["runs"]
    bandwidth = median([run["bandwidth"] for run in runs.values() if run["bandwidth"]] or [0.0])
    rows = []
    for way in (way for way in runs if way != "none"):
        read = {part: drafts_of(way)[1] * size for part, size in bytes_of_a_draft(way).items()}
        whole = sum(read.values())
        ideal = whole / bandwidth * 1e3 if bandwidth else None
        rows.append({"way": way, **read, "whole": whole, "ideal": ideal, "took": drafts_ms(result, way, "1")})

    def gigabytes(title: str, key: str) -> Column:
        return Column(title, key, lambda size: f"{size / 1e9:.2f}")

    columns = [
        Column("drafts", "way"),
        gigabytes("MTP linears, GB", "linears"),
        gigabytes("output head, GB", "head"),
        gigabytes("together", "whole"),
        Column("ms at the card's bandwidth", "ideal", ".3f"),
        Column("ms they took, batch 1", "took", ".3f"),
    ]
    note = f"{bandwidth / 1e12:.2f} TB/s, measured" if bandwidth else "bandwidth not measured"
    return table(columns, rows, f"Weights that the drafts of a step read; {note}")


def engine_tables(result: Json) -> str:
    """Steps; tokens a second where they were counted; the bytes that a step reads for drafts."""
    counted = all("served" in run for run in result["runs"].values())
    made = (step_table, served_table, bytes_table) if counted else (step_table, bytes_table)
    return "\n\n".join(make(result) for make in made)


def picture(result: Json) -> Any:
    """Kernels of a step by way: what a step without drafts takes, and what drafts add, a panel for each batch.

    Raises:
        ValueError: nothing was run on a GPU, or not without drafts.
    """
    from matplotlib.figure import Figure

    runs = result["runs"]
    names = list(runs)
    batches = list(next(iter(runs.values()))["steps"])
    figure = Figure(figsize=(4.2 * len(batches), 0.45 * len(names) + 1.4), layout="constrained")
    for axes, batch in zip(figure.subplots(1, len(batches), squeeze=False)[0], batches, strict=True):
        base = gpu_ms(runs["none"], batch) if "none" in runs else None
        if base is None:
            raise ValueError("no step without drafts was timed on a GPU")
        axes.barh(names, [base] * len(names), color="#b0b0b0", label="without drafts")
        added = [drafts_ms(result, name, batch) or 0.0 for name in names]
        axes.barh(names, added, left=base, color="#1f5fa8", label="drafts")
        axes.invert_yaxis()
        axes.set_title(f"batch {batch}", fontsize=9)
        axes.set_xlabel("kernels of a step, ms")
        axes.grid(axis="x", alpha=0.3)
    figure.axes[-1].legend(fontsize=8)
    place = where(next(iter(runs.values()))["environment"])
    figure.suptitle(f"{place}; {result['settings']['layers']} layers", fontsize=8)
    return figure


PAGE = Page(
    HERE / "README.md",
    {
        "acceptance": (acceptance_table, HERE / "acceptance.json"),
        "acceptance-gpu": (acceptance_table, HERE / "acceptance-gpu.json"),
        "engine": (engine_tables, HERE / "engine.json"),
        "engine-033": (engine_tables, HERE / "engine-0.33.json"),
    },
    {"engine.png": (picture, HERE / "engine.json")},
)
