"""The kernels of a first token: the longest by name, and all of them by what they do."""

from __future__ import annotations

import re

from bench.prefill.engine_notes import environments, label, noted
from bench.prefill.engine_results import (
    WITHOUT,
    Column,
    by_size,
    columns,
    comparable,
    first_token_kernels_ms,
    stock_column,
)
from bench.results import Json
from bench.tables import table

# What a kernel's name says it does; the first that matches.
_KINDS = {
    "attention": "attention|flash",
    "unpacking": "^_expand$",
    "activations to e4m3": "scaled_fp8_quant|^_quantize_rows$",
    "copies of results": "direct_copy_kernel",
    "GEMMs": "marlin::Marlin|machete|nvjet|cutlass",
}
_ORDER = ("GEMMs", "unpacking", "activations to e4m3", "copies of results", "attention")


def by_kind(found: Json) -> dict[str, float]:
    """Milliseconds by what kernels do, those of no kind and those that were not named as ``all others``."""
    kinds = dict.fromkeys(_ORDER, 0.0)
    for name, ms in found["kernels"].items():
        # An output or a Gated-DeltaNet kernel that Inductor wrote has the GEMM that it follows in its name.
        if name.startswith("triton_"):
            continue
        kind = next((kind for kind, pattern in _KINDS.items() if re.search(pattern, name)), None)
        if kind:
            kinds[kind] += ms
    return {**kinds, "all others": found["total"] - sum(kinds.values())}


def has_kernels(result: Json) -> bool:
    """Whether any run has them: they take a GPU."""
    return any(_taken(result, column) for column in columns(result))


def kinds_table(result: Json) -> str:
    """A row a kind and number of tokens, a column a way."""
    found = {column: _taken(result, column) for column in columns(result)}
    shown = [column for column, by_case in found.items() if by_case]
    if not shown:
        return "Not taken yet."
    rows = []
    for case in by_size([case for by_case in found.values() for case in by_case]):
        each = {column: by_kind(found[column][case]) for column in shown if case in found[column]}
        for kind in (*_ORDER, "all others"):
            cells = [_cell(each[column][kind]) if column in each else "" for column in shown]
            rows.append([case, kind, *cells])
        totals = [first_token_kernels_ms(result, column, case) for column in shown]
        rows.append([case, "all", *("" if total is None else f"{total:.1f}" for total in totals)])
        turns = any(column in WITHOUT and stock_column(result, column)[0] == column for column, _ in shown)
        against = "over vLLM's, in turns" if turns else "over vLLM's without the plugin"
        rows.append([case, against, *(_over(result, c, case) for c in shown)])
    note = (
        "ms of kernels to the first token; GEMMs with the output head; beyond the 24 longest all are others"
    )
    return noted(table(["tokens", "kernels", *map(label, shown)], rows), environments(result), note)


def _taken(result: Json, column: Column) -> dict[str, Json]:
    variant, way = column
    by_case = result["runs"][variant].get("ttft_gpu_ms", {})
    return {case: by_way[way] for case, by_way in by_case.items() if by_way.get(way)}


def _cell(ms: float) -> str:
    return f"{ms:.1f}" if ms else ""


def _over(result: Json, column: Column, case: str) -> str:
    if column[0] not in WITHOUT:
        return ""
    base = stock_column(result, column[0])
    if column == base or not comparable(result, column[0], base[0]):
        return ""
    ours, theirs = (first_token_kernels_ms(result, one, case) for one in (column, base))
    return "" if ours is None or not theirs else f"{ours / theirs:.3f}"


def first_token_kernels_table(result: Json) -> str:
    """Milliseconds of kernels until the first token, in all and of the longest ones."""
    rows = [
        [label((name, way)), case, f"{found['total']:.1f}", _longest(found["kernels"])]
        for name, run in result["runs"].items()
        for case, by_way in run.get("ttft_gpu_ms", {}).items()
        for way, found in by_way.items()
        if found
    ]
    if not rows:
        return "Not taken yet."
    header = ["way", "tokens", "kernels, ms", "the longest of them"]
    return noted(table(header, rows), environments(result))


def _longest(kernels: Json) -> str:
    longest = sorted(kernels, key=lambda name: -kernels[name])[:6]
    return "; ".join(f"{_short(name)} {kernels[name]:.1f}" for name in longest)


def _short(name: str) -> str:
    """A kernel's name without its arguments, in a cell of a table."""
    return re.split(r"[<(]", name.removeprefix("void "))[0][-48:].replace("|", " ")
