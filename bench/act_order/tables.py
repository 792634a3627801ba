"""The tables of README.md, from the results."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from bench.act_order.results import (
    MODULES,
    TARGET,
    engine_extras,
    extras,
    kernels_ms,
    same_tokens,
    step_ms,
    totals,
)
from bench.results import Json
from bench.tables import table, where

_NAMES = {
    "none": "none",
    "stock": "stock",
    "ours": "ours",
    "machete": "Machete, none",
    "before+none": "op + none",
    "before+stock": "op + stock",
    "before+ours": "op + index_select",
    "before+unchecked": "op + unchecked",
    "before+strided": "op + strided",
    "before+in_order": "op in order",
}


def gemm_times(result: Json) -> str:
    """Microseconds a call of every variant."""
    found = [name for name in _NAMES if any(name in row["us"] for row in result["rows"])]
    shapes = {module.name: f"{module.name} {module.k}×{module.n}" for module in MODULES}
    rows = [
        [shapes[row["module"]], str(row["m"])]
        + [f"{row['us'][name]:.1f}" if name in row["us"] else "" for name in found]
        + [f"{row['error']['ours']:.4f}", f"{row['error']['stock']:.4f}"]
        for row in result["rows"]
    ]
    header = ["module, K×N", "M", *(_NAMES[name] for name in found), "error, ours", "error, stock"]
    return (
        f"{table(header, rows)}\n\n{where(result['environment'])}; µs a call, median of {result['repeats']}."
    )


def gemm_norms(result: Json) -> str:
    """Microseconds a call of the norms alone; nothing where they were not measured."""
    kinds = [name for row in result["rows"] for name in row["us"] if name == "op" or name.startswith("op+")]
    found = list(dict.fromkeys(kinds))
    rows = [
        [row["module"], str(row["m"])]
        + [f"{row['us'][name]:.2f}" if name in row["us"] else "" for name in found]
        for row in result["rows"]
        if "op" in row["us"]
    ]
    if not rows:
        return ""
    names = [
        "as it is" if name == "op" else name.removeprefix("op+").replace("ours", "index_select")
        for name in found
    ]
    return f"{table(['norm before', 'M', *names], rows)}\n\n{where(result['environment'])}; µs a call, alone."


def gemm_extras(result: Json) -> str:
    """Microseconds that act order adds to a call."""
    names = {
        "stock": "stock",
        "ours": "ours",
        "stock_compiled": "stock, compiled",
        "ours_compiled": "ours, compiled",
        "checked_compiled": "index_select, compiled",
    }
    by_row = [(row, extras(row)) for row in result["rows"]]
    rows = [
        [row["module"], str(row["m"])] + [f"{extra[name]:+.2f}" if name in extra else "" for name in names]
        for row, extra in by_row
    ]
    body = table(["module", "M", *names.values()], rows)
    return f"{body}\n\n{where(result['environment'])}; µs a call over none."


def gemm_total(result: Json) -> str:
    """What act order adds to a pass through 64 layers."""
    rows = []
    for m, total in totals(result["rows"]).items():
        cells = [str(m), f"{total['none'] / 1e3:.2f}"]
        for name in ("stock", "ours", "ratio_ours", "stock_compiled", "ours_compiled", "ratio_ours_compiled"):
            value = total.get(name)
            cells.append(
                "" if value is None else f"{value:.2f}" if "ratio" in name else f"{value / 1e3:+.3f}"
            )
        rows.append(cells)
    header = [
        "M",
        "none",
        "stock",
        "ours",
        "ours / stock",
        "stock, compiled",
        "ours, compiled",
        "ours / stock",
    ]
    return (
        f"{table(header, rows)}\n\n{where(result['environment'])}; ms for the quantized linears of 64 layers, "
        f"sums of the medians; the aim is a ratio of at most {TARGET}."
    )


def engine_table(result: Json) -> str:
    """Milliseconds a decode step, and what act order adds."""
    runs, added = result["runs"], engine_extras(result)
    batches = next(iter(runs.values()))["step_ms"]
    rows = []
    for name, run in runs.items():
        cells = [name, str(run["layers"]["permuting"])]
        for batch in batches:
            extra = added.get(batch, {}).get(name)
            spread = max(run["step_ms"][batch]) - min(run["step_ms"][batch])
            kernels = kernels_ms(run, batch)
            cells += [
                f"{step_ms(run, batch):.3f} ({spread:.3f})",
                "" if kernels is None else f"{kernels:.3f}",
                "" if extra is None else f"{extra:+.3f}",
            ]
        rows.append(cells)
    header = ["act order", "linears that permute"]
    for batch in batches:
        header += [f"batch {batch}: ms a step (range)", "of kernels", "added"]
    notes = [f"{where(next(iter(runs.values()))['environment'])}; {result['settings']['layers']} layers"]
    notes += [
        f"ours / stock at batch {b}: {extra['ratio']:.2f}" for b, extra in added.items() if "ratio" in extra
    ]
    if {"stock", "ours"} <= set(runs):
        same, count = same_tokens(runs["stock"], runs["ours"])
        notes.append(f"same first token in stock and ours: {same} of {count} prompts")
    if {"none", "stock"} <= set(runs):
        same, count = same_tokens(runs["none"], runs["stock"])
        notes.append(f"in none and stock, whose weights differ: {same} of {count}")
    return f"{table(header, rows)}\n\n{'. '.join(notes)}."


def agreement_table(result: Json) -> str:
    """Errors of log-probabilities, and where greedy tokens part."""
    errors = result["log_probability_error"]
    rows = [[name, f"{found['rms']:.4f}", f"{found['largest']:.3f}"] for name, found in errors.items()]
    body = table(["against float32, nats a token", "root mean square", "largest"], rows)
    greedy, environment = result["greedy"], result["environment"]
    versions = ", ".join(f"{name} {version}" for name, version in environment.items() if name != "device")
    gap = max((apart["gap"] / apart["noise"] for apart in greedy["parted"]), default=0.0)
    return "\n\n".join(
        [
            body,
            f"{versions}; {environment['device']}. {result['prompts']} prompts of {result['prompt_tokens']} "
            f"tokens. Greedy, {result['new_tokens']} tokens, two MTP drafts "
            f"({result['acceptance_length']:.2f} tokens a step): {greedy['equal']} prompts alike to the last "
            f"token, with transformers in BF16 {greedy['equal in transformers in BF16']}; where the others part, "
            "float32 prefers its own token by at most "
            f"{gap:.1f} standard deviations of what BF16 changes about the logits.",
        ]
    )


def quantization(run: Mapping[str, Any]) -> str:
    """What vLLM's log says that the checkpoint is served as.

    Raises:
        ValueError: no line says it.
    """
    found = re.search(r"quantization=(\w+)", "\n".join(run["log"]))
    if found is None:
        raise ValueError(
            "no line of vLLM's log says quantization=: serve again with python -m bench.act_order.served"
        )
    return found[1]


def served_table(result: Json) -> str:
    """A row a way: who serves it, errors of log-probabilities, replies that are alike, tokens a step.

    Raises:
        ValueError: there is no comparison yet.
    """
    runs, compared = result["runs"], result.get("compared")
    if compared is None:
        raise ValueError(
            "served.json has no comparison: run python -m bench.act_order.served with --reference"
        )
    rows = []
    for way, found in compared["ways"].items():
        error, run = found["log_probability_error"], runs.get(way)
        rows.append(
            [
                way,
                "" if run is None else quantization(run),
                f"{error['rms']:.4f}",
                f"{error['largest']:.3f}",
                str(len(found["prompts off"])),
                str(found["replies as float32"]),
                str(found.get("replies as stock", "")),
                "" if run is None else f"{run['acceptance_length']:.3f}",
            ]
        )
    header = [
        "",
        "vLLM's `quantization`",
        "root mean square",
        "largest",
        "prompts off",
        "replies as float32",
        "as stock's",
        "tokens a step",
    ]
    environment = next(iter(runs.values()))["environment"]
    return (
        f"{table(header, rows)}\n\n{where(environment)}; errors against float32, nats a token, "
        "without prompts that are off by more than 1 nat (root mean square) in stock; "
        f"{compared['prompts']} prompts of {compared['prompt_tokens']} tokens, greedy replies of "
        f"{result['settings']['new']}, two MTP drafts."
    )
