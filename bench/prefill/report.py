"""The page's tables and picture. No torch here.

python -m bench.pages prefill
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from bench.engine import step_kernels_ms, step_ms
from bench.pages import Page
from bench.prefill import results
from bench.prefill.results import PLUGIN
from bench.prefill.results import Column as Way
from bench.results import Json
from bench.tables import Column, interval, number, table, where

HERE = Path(__file__).parent
_MIB, _GIB = 1 << 20, 1 << 30
# Of the numbers of tokens that were measured.
_SHOWN = (1, 16, 128, 256, 512, 1024, 2048, 4096, 8192)
_SHAPES = {f"{k}x{n}": name for name, (k, n, _) in results.MODULES.items()}
_ROUTES = {
    "stock": "stock",
    "exact": "exact",
    "fp8_vllm": "fp8, vLLM's GEMM",
    "fp8_torch": "fp8, PyTorch's GEMM",
}


def label(way: Way) -> str:
    """A column's name; of the plugin's ways, the process stands before the way."""
    return way[0] if way[0] == way[1] else ": ".join(way)


def environments(result: Json) -> str:
    """Card and versions, once where all runs share them; what went wrong; which runs were cut off."""
    by_place: dict[str, list[str]] = {}
    for name, run in result["runs"].items():
        if "environment" in run:
            place = run["environment"]
            extra = [f"{key} {place[key]}" for key in ("triton", "driver") if key in place]
            by_place.setdefault(", ".join([where(place), *extra]), []).append(name)
    notes = [place if len(by_place) == 1 else f"{', '.join(of)}: {place}" for place, of in by_place.items()]
    notes.append(f"{result['settings']['layers']} layers")
    if result["settings"]["tiny"]:
        notes.append("a tiny model, to try the script out: these times say nothing")
    for name, run in result["runs"].items():
        notes += [f"PROBLEM in {name}: {text}" for text in run.get("problems", [])]
    cut = [name for name, run in result["runs"].items() if not run.get("complete")]
    if cut:
        notes.append(f"cut off before the end: {', '.join(cut)}")
    return "; ".join(notes)


# --- one linear at a time ---


def pass_table(result: Json) -> str:
    """All quantized linears of 64 layers, by number of tokens."""
    rows = [
        {"layout": layout, "m": m, **times, "over": {name: ms / times["stock"] for name, ms in times.items()}}
        for layout, by_m in results.passes(result).items()
        for m, times in by_m.items()
        if m in _SHOWN
    ]
    shares = {"plugin": "exact", "plugin_fp8": "fp8", "cublas": "dense all along"}
    return table(
        [
            Column("stock", "layout"),
            Column("M", "m"),
            Column("stock, ms", "stock", ".2f"),
            *(Column(title, ("over", name), ".2f") for name, title in shares.items()),
        ],
        rows,
        f"{linear_environment(result)}. Linears of 64 layers in CUDA graphs, sums of medians; the last three as a "
        "share of stock, with the starts that start-up found",
    )


def kernels_table(result: Json) -> str:
    """vLLM's own kernels against each other."""
    rows = [row for row in results.kernel_passes(result) if row["m"] not in (2, 4, 32, 96)]

    def share(name: str, base: str) -> Column:
        return Column(
            f"{name} over {base}", lambda row: row[name] / row[base] if name in row else None, ".2f"
        )

    first = [shape["first_calls_s"]["Humming"] for shape in result["shapes"].values()]
    return table(
        [
            Column("M", "m"),
            Column("Marlin, ms", "Marlin", ".2f"),
            share("Machete", "Marlin"),
            share("Humming", "Marlin"),
            share("Humming", "Machete"),
        ],
        rows,
        f"{where(result['environment'])}. Linears of 64 layers in CUDA graphs, sums of medians; to compile "
        f"Humming's kernels took {min(first):.0f} to {max(first):.0f} s a shape on 16 cores",
    )


def linear_environment(result: Json) -> str:
    """Card, versions and settings."""
    place, settings = result["environment"], result["settings"]
    return (
        f"{where(place)}, triton {place['triton']}, driver {place['driver']}; {settings['dtype']}, groups of "
        f"{settings['group_size']}, scratch {settings['scratch_mib']} MiB"
    )


def worst_table(result: Json) -> str:
    """Any shape, any number of tokens; and calls that take another route."""
    rows = [
        [number(ratio, ".3f"), place, "another route" if elsewhere else "any route"]
        for elsewhere in (False, True)
        for ratio, place in results.worst(result, elsewhere=elsewhere)
    ]
    return table(["over stock at worst", "where", "of calls that take"], rows)


# --- whole models ---


def ttft_table(result: Json) -> str:
    """Milliseconds to the first token, median, and the range in brackets."""

    def cell(case: str, way: Way) -> str | None:
        middle = results.ttft_ms(result, way, case)
        if middle is None:
            return None
        times = result["runs"][way[0]]["ttft_ms"][way[1]][case]
        return f"{middle:.1f} ({max(times) - min(times):.1f})"

    return table(
        [
            Column("tokens", str),
            *(Column(label(way), lambda case, way=way: cell(case, way)) for way in results.columns(result)),
        ],
        results.cases(result),
        f"{environments(result)}. Ms to first token, medians (range); NxM: N prompts of M tokens",
    )


def _ratios(result: Json, ours: Way, base: Way, case: str) -> tuple[float | None, float | None]:
    """On the clock and of kernels."""
    kernels = None
    if results.comparable(result, ours[0], base[0]):
        one, other = (results.first_token_kernels_ms(result, way, case) for way in (ours, base))
        kernels = one / other if one is not None and other else None
    return results.ttft_ratio(result, ours, base, case), kernels


def _step_ratios(run: Json, base: Json, batch: str) -> tuple[float | None, float | None]:
    both = [(take(run, batch), take(base, batch)) for take in (step_ms, step_kernels_ms)]
    clock, kernels = (one / other if one is not None and other else None for one, other in both)
    return clock, kernels


def targets_table(result: Json) -> str:
    """A row a target: the ratio wanted, and those on the clock and of kernels, which leave out the host.

    With ``--graphs`` every way is a process; else the ways of the plugin's process take turns.
    """
    runs, rows = result["runs"], []
    graphs = PLUGIN not in runs
    if graphs:
        most = {
            (target.way, target.case): target.most for target in results.TARGETS if target.base == "stock"
        }
        ways = [way for way in results.GRAPHED if results.comparable(result, way, "stock")]
        for case in results.cases(result):
            for way in ways:
                ratios = _ratios(result, (way, way), ("stock", "stock"), case)
                rows.append((f"first token, {way} / stock", case, most.get((way, case)), ratios))
        steps = [(f"decode step, {way} / stock", way) for way in ways]
    else:
        for target in results.TARGETS:
            base = results.stock_column(result) if target.base == "stock" else (target.base, target.base)
            what = f"first token, {target.way} / {target.base}{', in turns' if base[0] == PLUGIN else ''}"
            rows.append(
                (
                    what,
                    target.case,
                    target.most,
                    _ratios(result, (PLUGIN, target.way), base, target.case),
                )
            )
        steps = (
            [("decode step, plugin / stock", PLUGIN)] if results.comparable(result, PLUGIN, "stock") else []
        )
    for what, name in steps:
        for batch in runs[name].get("step_ms", {}):
            rows.append(
                (f"{what}, batch {batch}", "", results.STEP, _step_ratios(runs[name], runs["stock"], batch))
            )

    def met(row: Any, place: int) -> str | None:
        ratio, most = row[3][place], row[2]
        return (
            None if ratio is None else f"{ratio:.3f}{', met' if most is not None and ratio <= most else ''}"
        )

    return table(
        [
            Column("", lambda row: row[0]),
            Column("tokens", lambda row: row[1]),
            Column("at most", lambda row: row[2], ".2f"),
            Column("on the clock", lambda row: met(row, 0)),
            Column("of kernels", lambda row: met(row, 1)),
        ],
        rows,
        environments(result),
    )


def kinds_table(result: Json) -> str:
    """Milliseconds of kernels to the first token, by what they do; a column a way."""
    taken = {
        way: {
            case: by_way[way[1]]
            for case, by_way in result["runs"][way[0]].get("ttft_gpu_ms", {}).items()
            if by_way.get(way[1])
        }
        for way in results.columns(result)
    }
    shown = [way for way, by_case in taken.items() if by_case]
    rows: list[Json] = []
    for case in results.by_size([case for by_case in taken.values() for case in by_case]):
        each = {way: results.by_kind(taken[way][case]) for way in shown if case in taken[way]}
        rows += [
            {"case": case, "kind": kind, **{label(way): of[kind] or None for way, of in each.items()}}
            for kind in (*results.KINDS, "all others")
            if any(of[kind] for of in each.values())
        ]
        totals = {label(way): results.first_token_kernels_ms(result, way, case) for way in shown}
        rows.append({"case": case, "kind": "all", **totals})
    note = (
        "Ms of kernels to the first token; GEMMs with the output head; beyond the 24 longest all are others"
    )
    return table(
        [
            Column("tokens", "case"),
            Column("kernels", "kind"),
            *(Column(label(way), label(way), ".1f") for way in shown),
        ],
        rows,
        f"{environments(result)}. {note}",
    )


def memory_table(result: Json) -> str:
    """KV cache and what the plugin takes of it; seconds of start-up."""
    rows = []
    for name, run in result["runs"].items():
        given_up, plugin = results.kv_given_up(result, name), run.get("plugin", {})
        rows.append(
            {
                "name": name,
                **run,
                "weights": run["memory"]["weights"] / _GIB,
                "cache": run["kv_cache"]["bytes"] / _GIB,
                "given_up": None if given_up is None else given_up / _MIB,
                "scratch": plugin["scratch_bytes"] / _MIB if plugin else None,
                "scales": plugin["fp8_scale_bytes"] / _MIB if plugin else None,
            }
        )
    return table(
        [
            Column("process", "name"),
            Column("weights, GiB", "weights", ".2f"),
            Column("KV cache, GiB", "cache", ".2f"),
            Column("tokens in it", ("kv_cache", "tokens"), ","),
            Column("given up by the plugin, MiB", "given_up", ".0f"),
            Column("scratch, MiB", "scratch", ".0f"),
            Column("FP8 scales, MiB", "scales", ".1f"),
            Column("weights prepared, s", ("seconds", "process_weights"), ".1f"),
            Column("of it measuring, s", ("seconds", "measuring"), ".1f"),
        ],
        rows,
        f"{environments(result)}. {result['settings']['memory']:g} of the card's memory; prefill=fp8",
    )


def gemms_table(result: Json) -> str:
    """Milliseconds that the linears of 64 layers take by each route and GEMM, as start-up measured them.

    Raises:
        ValueError: the profile is not of the 27B's shapes.
    """
    shapes = result["runs"][PLUGIN]["plugin"]["profile"]["shapes"]
    times = {_SHAPES[key.split()[1]]: entry["times_us"] for key, entry in shapes.items()}
    if set(times) != set(results.LAYERS):
        raise ValueError(f"the profile has {sorted(times)}, and the 27B {sorted(results.LAYERS)}")
    rows = []
    for m in times["qkv"]["stock"]:
        ms = {r: sum(results.LAYERS[name] * by[r][m] for name, by in times.items()) / 1e3 for r in _ROUTES}
        rows.append({"m": m, **ms, "ratio": ms["fp8_torch"] / ms["fp8_vllm"]})
    return table(
        [
            Column("M", "m"),
            *(Column(title, route, ".1f") for route, title in _ROUTES.items()),
            Column("PyTorch's over vLLM's", "ratio", ".2f"),
        ],
        rows,
        f"{environments(result)}. Ms of the linears of 64 layers, one call after another, sums of medians",
    )


def engine_report(result: Json) -> str:
    """What the script prints of a run, whole or not."""
    parts = [ttft_table(result)]
    if "stock" in result["runs"]:
        parts.append(targets_table(result))
    parts += [run["plugin"]["banner"] for run in result["runs"].values() if "plugin" in run]
    return "\n\n".join(parts)


# --- what fp8 costs in quality ---


def quality_table(result: Json) -> str:
    """A row a way, all domains together; then how the domains differ."""
    rows = []
    for part in ("everywhere", "context"):
        ways, base = result[part]["ways"], result[part]["ways"]["w4a16"]["kld_mean"]["value"]
        for way, row in reversed(ways.items()):
            less = result[part]["less_w4a16"].get(way, {})
            rows.append({"way": f"`{way}`, {results.WRITTEN[part]}", **row, "less": less, "base": base})

    def share(row: Json) -> str | None:
        difference = row["less"].get("kld_mean")
        return difference and number(difference["value"] / row["base"] * 100, "+.1f") + " %"

    body = table(
        [
            Column("", "way"),
            Column("KLD, 10⁻³ nats a token", "kld_mean", lambda e: interval(e, ".2f", 1e3)),
            Column("less `w4a16`", ("less", "kld_mean"), lambda e: interval(e, "+.2f", 1e3)),
            Column("of it", share),
            Column("p", ("less", "kld_mean", "p"), lambda p: f"{p:.4f}" if p < 0.01 else f"{p:.2f}"),
            Column("top-1, %", "top1", lambda e: interval(e, ".2f", 100)),
            Column("perplexity ratio", ("perplexity_ratio", "value"), ".4f"),
            Column("tokens a step", "acceptance_length", ".3f"),
        ],
        rows,
    )
    place, settings = result["environment"], result["settings"]
    domains = result["everywhere"]["domains"]
    most = max(domains, key=lambda name: domains[name]["share"])
    least = min(domains, key=lambda name: domains[name]["share"])
    return (
        f"{body}\n\n`{settings['recipe']}`, calibrated on {settings['calibration_tokens']:,} tokens, "
        f"{settings['linears']} linears; {settings['documents']} documents ({settings['tokens']:,} tokens); "
        f"{place['device']}, torch {place['torch']}. By domain `fp8` everywhere is from "
        f"{number(100 * domains[least]['share'], '+.1f')} % ({least}) to "
        f"{number(100 * domains[most]['share'], '+.1f')} % ({most}) of `w4a16`'s divergence."
    )


def picture(result: Json) -> Any:
    """Time against tokens, a panel a shape and layout, both axes logarithmic."""
    from matplotlib.figure import Figure

    shapes = result["shapes"]
    layouts = list(dict.fromkeys(shape["shape"].split()[0] for shape in shapes))
    modules = list(dict.fromkeys(shape["module"] for shape in shapes))
    lines = {"stock": "#808080", "exact": "#1f5fa8", "fp8": "#d9822b", "cublas": "#b8d8b8"}
    figure = Figure(figsize=(3.1 * len(modules), 3.0 * len(layouts) + 0.6), layout="constrained")
    grid = figure.subplots(len(layouts), len(modules), sharex=True, squeeze=False)
    for shape in shapes:
        axes = grid[layouts.index(shape["shape"].split()[0])][modules.index(shape["module"])]
        for name, color in lines.items():
            points = [(row["m"], row["times"][name]["us"]) for row in shape["rows"] if name in row["times"]]
            if points:
                shown = "dense" if name == "cublas" else name
                axes.plot(*zip(*points, strict=True), color=color, label=shown)
            if shape["starts"].get(name):
                axes.axvline(shape["starts"][name], color=color, linewidth=0.8, linestyle=":")
        axes.set_xscale("log", base=2)
        axes.set_yscale("log")
        axes.set_title(f"{shape['module']}, {shape['stock'].removesuffix('LinearKernel')}", fontsize=9)
        axes.grid(alpha=0.3)
    for row in grid:
        row[0].set_ylabel("µs a call")
    for axes in grid[-1]:
        axes.set_xlabel("tokens")
    grid[0][0].legend(fontsize=8)
    figure.suptitle(linear_environment(result) + "; dotted: where a route starts", fontsize=9)
    return figure


LINEAR, ENGINE, GRAPHS = (HERE / f"{name}.json" for name in ("linear", "engine", "graphs"))


def eight_bit_table(result: Json) -> str:
    """Time of all linears of 64 layers over Marlin's, and the error of a product, by numbers of tokens."""
    shapes = result["shapes"]
    kinds = list(next(iter(shapes.values()))["us"]["8192"])

    def whole(kind: str, rows: str) -> float:
        return float(sum(each["us"][rows][kind]["us"] * results.MODULES[m][2] for m, each in shapes.items()))

    lines = []
    for rows in next(iter(shapes.values()))["us"]:
        if all(kind in each["us"][rows] for each in shapes.values() for kind in kinds):
            lines.append([rows, *(f"{whole(kind, rows) / whole('Marlin', rows):.2f}" for kind in kinds)])
    lines.append(["error", *(f"{max(e['error']['8192'][k] for e in shapes.values()):.4f}" for k in kinds)])
    return table(["tokens", *kinds], lines, f"{where(result['environment'])}; shares of Marlin's time")


PAGE = Page(
    HERE / "README.md",
    {
        "pass": (pass_table, LINEAR),
        "pass-fp16": (pass_table, HERE / "linear-fp16.json"),
        "worst": (worst_table, LINEAR),
        "kernels": (kernels_table, HERE / "kernels.json"),
        "ttft-033": (ttft_table, HERE / "engine-0.33.json"),
        "targets": (targets_table, ENGINE),
        "kinds": (kinds_table, ENGINE),
        "ttft": (ttft_table, ENGINE),
        "memory": (memory_table, ENGINE),
        "graphs": (targets_table, GRAPHS),
        "gemms": (gemms_table, ENGINE),
        "eight-bit": (eight_bit_table, HERE / "eight-bit.json"),
        "quality": (quality_table, HERE / "quality.json"),
    },
    {"linear.png": (picture, LINEAR)},
)
