"""Tables from what `engine.py` wrote.

python -m bench.prefill.engine_tables RESULT.json
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

from bench.prefill.engine_kernels import first_token_kernels_table, has_kernels, kinds_table
from bench.prefill.engine_notes import environments, label, noted, number
from bench.prefill.engine_results import (
    PLUGIN,
    WAYS,
    WITHOUT,
    Column,
    cases,
    columns,
    comparable,
    kernels_ms,
    kv_given_up,
    step_ms,
    ttft_ms,
    ttft_ratio,
)
from bench.results import Json, load
from bench.tables import table

_MIB, _GIB = 1 << 20, 1 << 30


def ttft_table(result: Json) -> str:
    """Milliseconds to the first token, median, and the range in brackets."""
    found = columns(result)
    rows = []
    for case in cases(result):
        cells = [case]
        for variant, way in found:
            times = result["runs"][variant]["ttft_ms"][way].get(case)
            middle = ttft_ms(result, (variant, way), case)
            cells.append("" if not times else f"{middle:.1f} ({max(times) - min(times):.1f})")
        rows.append(cells)
    body = table(["tokens", *map(label, found)], rows)
    return noted(body, environments(result), "ms to first token, medians (range); NxM: N prompts of M tokens")


def comparisons(result: Json) -> list[tuple[Column, Column]]:
    """Which column is held against which, those within one process first."""
    runs, found = result["runs"], []
    ours = [name for name in WITHOUT if name in runs]
    for name in ours:
        ways = runs[name].get("ttft_ms", {})
        found += [((name, way), (name, "stock")) for way in WAYS[1:] if way in ways]
    for name in ours:
        base = WITHOUT[name]
        others = [
            other for other in dict.fromkeys((base, "machete", "bf16")) if comparable(result, name, other)
        ]
        for other in others:
            ways = WAYS if other == base else WAYS[1:]
            found += [((name, way), (other, other)) for way in ways if way in runs[name].get("ttft_ms", {})]
    return found


def ratio_table(result: Json) -> str:
    """Times to first token over each other; below 1 the first is faster."""
    pairs = comparisons(result)
    if not pairs:
        return "Nothing to compare yet."
    rows = [
        [case, *(number(ttft_ratio(result, ours, base, case), ".3f") for ours, base in pairs)]
        for case in cases(result)
    ]
    header = ["tokens"]
    for (variant, way), base in pairs:
        same = variant == base[0]
        header.append(f"{variant}: {way} / {base[1] if same else f'{base[0]} (process)'}")
    return noted(table(header, rows), environments(result), *left_to_stock(result))


def left_to_stock(result: Json) -> list[str]:
    """Where a way left some shapes to the stock kernel, or all of them."""
    notes = []
    for name in WITHOUT:
        for way, by_case in result["runs"].get(name, {}).get("taken", {}).items():
            for case, paths in by_case.items():
                stock = [key for key, path in paths.items() if path == "stock"]
                if way != "stock" and stock:
                    who = "all linears" if len(stock) == len(paths) else ", ".join(stock)
                    notes.append(f"{name}, {way} at {case}: {who} by vLLM's kernel")
    return notes


def step_table(result: Json) -> str:
    """Milliseconds a decode step of each process: on the clock, host included, and of its kernels; ratios."""
    runs = {name: run for name, run in result["runs"].items() if run.get("step_ms")}
    if not runs:
        return "No decode steps yet."
    batches = list(dict.fromkeys(batch for run in runs.values() for batch in run["step_ms"]))
    rows = []
    for name, run in runs.items():
        cells = [name]
        for batch in batches:
            times, base = run["step_ms"].get(batch), WITHOUT.get(name, "")
            cells.append("" if not times else f"{step_ms(run, batch):.3f} ({max(times) - min(times):.3f})")
            own = kernels_ms(run, batch)
            cells.append(number(own, ".3f"))
            fair = base in runs and comparable(result, name, base)
            against = kernels_ms(runs[base], batch) if fair else None
            if fair and (own is None or against is None):
                own, against = step_ms(run, batch), step_ms(runs[base], batch)
            cells.append("" if own is None or against is None else f"{own / against:.4f}")
        rows.append(cells)
    header = ["process"]
    for batch in batches:
        header += [
            f"batch {batch}: ms a step (range)",
            "of kernels",
            "over the same kernel without the plugin",
        ]
    return noted(table(header, rows), environments(result), "ratios by kernels where those were taken")


def memory_table(result: Json) -> str:
    """KV cache and what the plugin takes of it; seconds of start-up."""
    rows = []
    for name, run in result["runs"].items():
        if "kv_cache" not in run:
            continue
        cache, memory, seconds = run["kv_cache"], run.get("memory", {}), run["seconds"]
        plugin = run.get("plugin", {})
        given_up = kv_given_up(result, name)
        rows.append(
            [
                name,
                number(memory["weights"] / _GIB if "weights" in memory else None, ".2f"),
                number(memory["peak_activation"] / _GIB if "peak_activation" in memory else None, ".2f"),
                number(cache["bytes"] / _GIB, ".2f"),
                "" if cache["tokens"] is None else f"{cache['tokens']:,}",
                number(None if given_up is None else given_up / _MIB, ".0f"),
                number(plugin["scratch_bytes"] / _MIB if plugin else None, ".0f"),
                number(plugin["fp8_scale_bytes"] / _MIB if plugin else None, ".1f"),
                number(seconds["start"], ".0f"),
                number(seconds["process_weights"], ".1f"),
                number(seconds.get("measuring"), ".1f"),
            ]
        )
    header = ["process", "weights, GiB", "peak activation, GiB", "KV cache, GiB", "tokens in it",
              "given up by the plugin, MiB", "scratch, MiB", "FP8 scales, MiB",
              "start, s", "weights prepared, s", "of it measuring, s"]  # fmt: skip
    share = result["settings"]["memory"]
    note = f"{share:g} of the card's memory; a start compiles unless a graph was kept; prefill=fp8"
    return noted(table(header, rows), environments(result), note)


def load_table(result: Json) -> str:
    """Requests served each way: tokens against the stock way's, memory before and after."""
    rows, notes = [], []
    for name, run in result["runs"].items():
        served = run.get("load")
        if not served:
            continue
        notes.append(
            f"{name}: {served['requests']} requests, {served['prompt_tokens']:,} prompt tokens, "
            f"{served['new_tokens']} new tokens each, greedy, random weights; its first row warms up"
        )
        tokens = served["prompt_tokens"] + served["requests"] * served["new_tokens"]
        for way, found in served["ways"].items():
            apart = found["first_difference"]
            rows.append(
                [
                    label((name, way)),
                    f"{found['seconds']:.2f}",
                    f"{tokens / found['seconds']:,.0f}",
                    f"{apart.count(None)} of {len(apart)}",
                    _positions([place for place in apart if place is not None]),
                    _largest([gap for gap in found.get("margin", []) if gap is not None]),
                    *_growth(found["memory"]),
                    ", ".join(f"{path} {count:,}" for path, count in found["calls"].items()),
                    found["digest"],
                ]
            )
    if not rows:
        return "No load was served yet."
    header = ["way", "s", "tokens/s", "requests alike with the first row",
              "first difference at token (least, median)", "margin there (median, largest), nats",
              "memory of tensors grew by, MiB",
              "free memory fell by, MiB", "calls", "digest"]  # fmt: skip
    return noted(table(header, rows), environments(result), *notes)


def _positions(places: Sequence[int]) -> str:
    ordered = sorted(places)
    return f"{ordered[0]}, {ordered[len(ordered) // 2]}" if ordered else ""


def _largest(gaps: Sequence[float]) -> str:
    ordered = sorted(gaps)
    return f"{ordered[len(ordered) // 2]:.4f}, {ordered[-1]:.4f}" if ordered else ""


def _growth(memory: Json) -> list[str]:
    before, after = memory["before"], memory["after"]
    if not before or not after:
        return ["", ""]
    return [
        f"{(after['allocated'] - before['allocated']) / _MIB:+.1f}",
        f"{(before['free'] - after['free']) / _MIB:+.1f}",
    ]


def banners(result: Json) -> str:
    """What start-up said."""
    return "\n".join(run["plugin"]["banner"] for run in result["runs"].values() if "plugin" in run)


def report(result: Json) -> str:
    """All tables, each with its card and versions."""
    parts = {
        "Time to first token": ttft_table(result),
        "Ratios": ratio_table(result),
    }
    if has_kernels(result):
        parts["By what kernels do"] = kinds_table(result)
        parts["By kernels"] = first_token_kernels_table(result)
    parts |= {"Decode": step_table(result), "Memory and start": memory_table(result)}
    if any(run.get("load") for run in result["runs"].values()):
        parts["Load"] = load_table(result)
    if PLUGIN in result["runs"] or banners(result):
        parts["What the plugin said"] = banners(result)
    return "\n\n".join(f"### {title}\n\n{body}" for title, body in parts.items())


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("result", type=Path)
    path = parser.parse_args().result
    result = load(path)
    if result is None:
        parser.error(f"{path} is not there: run python -m bench.prefill.engine {path}")
    print(report(result))


if __name__ == "__main__":
    main()
