"""The page's tables: what act order costs, and whether it is right. No torch here.

python -m bench.pages act_order
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from bench.engine import step_kernels_ms, step_ms
from bench.pages import Page
from bench.results import Json
from bench.tables import Column, table, where

HERE = Path(__file__).parent
VARIANTS = ("none", "stock", "ours", "ours-gathered")


def added(result: Json) -> dict[str, dict[str, float]]:
    """By batch: milliseconds a step that each variant adds to ``none``, and ``ratio``, ours over stock's.

    By their kernels where both were taken so, else on the clock. Empty without ``none``.
    """
    runs = result["runs"]
    if "none" not in runs:
        return {}
    by_batch = {}
    for batch in runs["none"]["step_ms"]:
        extra = {}
        for name in (name for name in runs if name != "none"):
            base, own = (step_kernels_ms(run, batch) for run in (runs["none"], runs[name]))
            if base is None or own is None:
                base, own = (step_ms(run, batch) for run in (runs["none"], runs[name]))
            if base is not None and own is not None:
                extra[name] = own - base
        if extra.get("stock", 0.0) > 0 and "ours" in extra:
            extra["ratio"] = extra["ours"] / extra["stock"]
        by_batch[batch] = extra
    return by_batch


def same_first_token(one: Mapping[str, Any], other: Mapping[str, Any]) -> tuple[int, int]:
    """Of the prompts of two runs: how many have the same first token, and how many there are."""
    pairs = list(zip(one["tokens"], other["tokens"], strict=True))
    return sum(a[0] == b[0] for a, b in pairs), len(pairs)


def engine_table(result: Json) -> str:
    """Milliseconds of kernels and of the clock a decode step, and what act order adds."""
    runs, extra = result["runs"], added(result)
    columns = [
        Column("act order", "name"),
        Column("linears that permute", lambda row: row["run"]["layers"]["permuting"]),
    ]
    for batch in next(iter(runs.values()))["step_ms"]:
        columns += [
            Column(f"batch {batch}: kernels, ms", lambda row, b=batch: step_kernels_ms(row["run"], b), ".3f"),
            Column("added", lambda row, b=batch: extra.get(b, {}).get(row["name"]), "+.3f"),
            Column("on the clock", lambda row, b=batch: step_ms(row["run"], b), ".2f"),
        ]
    notes = [f"{where(next(iter(runs.values()))['environment'])}; {result['settings']['layers']} layers"]
    notes += [
        f"what ours adds, over what stock adds, batch {batch}: {of['ratio']:.3f}"
        for batch, of in extra.items()
        if "ratio" in of
    ]
    if {"stock", "ours"} <= set(runs):
        same, count = same_first_token(runs["stock"], runs["ours"])
        notes.append(f"same first token in stock and ours: {same} of {count}")
    rows = [{"name": name, "run": run} for name, run in runs.items()]
    return table(columns, rows, "; ".join(notes))


def quantization(run: Mapping[str, Any]) -> str:
    """What vLLM's log says that the checkpoint is served as.

    Raises:
        ValueError: no line says it.
    """
    match = re.search(r"quantization=(\w+)", "\n".join(run["log"]))
    if match is None:
        raise ValueError("no line of vLLM's log says quantization=")
    return match[1]


def served_table(result: Json) -> str:
    """A row a way: who serves it, errors of log-probabilities, replies that are alike, tokens a step."""
    runs, compared = result["runs"], result["compared"]
    rows = [{"way": way, "run": runs.get(way), **entry} for way, entry in compared["ways"].items()]
    columns = [
        Column("", "way"),
        Column("vLLM's `quantization`", lambda row: row["run"] and quantization(row["run"])),
        Column("root mean square", ("log_probability_error", "rms"), ".4f"),
        Column("largest", ("log_probability_error", "largest"), ".3f"),
        Column("prompts off", lambda row: len(row["prompts off"])),
        Column("replies as float32", "replies as float32"),
        Column("as stock's", "replies as stock"),
        Column("tokens a step", ("run", "acceptance_length"), ".3f"),
    ]
    return table(
        columns,
        rows,
        f"{where(next(iter(runs.values()))['environment'])}; errors against float32, nats a token, without prompts "
        "that are off by more than 1 nat (root mean square) in stock; "
        f"{compared['prompts']} prompts of {compared['prompt_tokens']} tokens, greedy replies of "
        f"{result['settings']['new']}, two MTP drafts",
    )


PAGE = Page(
    HERE / "README.md",
    {"engine": (engine_table, HERE / "engine.json"), "served": (served_table, HERE / "served.json")},
)
