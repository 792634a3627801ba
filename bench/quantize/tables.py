"""Tables and the picture of what `bench.quantize.run` and `bench.quantize.hessian` found. Without torch."""

from __future__ import annotations

from collections.abc import Sequence
from math import isfinite
from statistics import fmean
from typing import Any

from bench.results import Json
from bench.tables import table, where

VARIANTS = ("stock", "definition", "ours", "fast")
STAGES = ("forward", "hessian", "solver", "inverse", "moves", "finalize")
# That follow one another.
_IN_TURN = ("forward", "hessian", "solver", "moves")
# Aims, as shares of stock.
TIME_TARGET, SOLVE_TARGET, MEMORY_TARGET, LOSS_TARGET = 0.35, 0.6, 1.0, 0.01
_MEMORY_ROWS = 512


def layer_seconds(run: Json) -> float:
    """Seconds a layer, between the first and the last; of all layers where there are no others."""
    found: Sequence[float] = run["layer_seconds"]
    return fmean(found[1:-1] or found)


def solve_seconds(run: Json) -> float:
    """Seconds in which any module was solved: search of scales, inverses, sweep."""
    return float(run["stages"]["solver"])


def loss_difference(run: Json, other: Json) -> tuple[str, float] | None:
    """Module whose loss is furthest from that in ``other``, and by which share of it; None without any.

    Modules that either run fell back for are not numbers, and count as infinitely far where the other is one.
    """
    worst: tuple[str, float] | None = None
    for name, loss in run["losses"].items():
        before = other["losses"].get(name)
        if isinstance(loss, str) and isinstance(before, str):
            continue
        difference = float("inf")
        if isinstance(loss, int | float) and isinstance(before, int | float) and before:
            difference = abs(loss - before) / abs(before)
        if worst is None or not isfinite(difference) or difference > worst[1]:
            worst = name, difference
    return worst


def complete(result: Json) -> dict[str, Json]:
    """Runs that got as far as their figures."""
    return {name: run for name, run in result["runs"].items() if "layer_seconds" in run}


def variants_table(result: Json) -> str:
    """Time, memory and loss of every variant, and their ratios to stock where it is there."""
    runs = complete(result)
    stock = runs.get("stock")
    rows = []
    for name, run in runs.items():
        memory = run["memory"]
        peak = memory.get("gpu_gib")
        cells = [
            name,
            f"{layer_seconds(run):.2f}",
            _ratio(layer_seconds(run), stock and layer_seconds(stock)),
            f"{solve_seconds(run):.1f}",
            _ratio(solve_seconds(run), stock and solve_seconds(stock)),
            "" if peak is None else f"{peak:.2f}",
            "" if peak is None else _ratio(peak, stock and stock["memory"].get("gpu_gib")),
            f"{memory['cpu_gib']:.1f}",
        ]
        worst = loss_difference(run, stock) if stock and run is not stock else None
        cells.append("" if worst is None else f"{100 * worst[1]:.3g} %")
        rows.append(cells)
    header = [
        "variant", "s a layer", "/ stock", "solver, s", "/ stock", "GPU, GiB", "/ stock", "CPU, GiB", "loss, worst",
    ]  # fmt: skip
    return f"{table(header, rows)}\n\n{_made_with(result)}"


def stages_table(result: Json) -> str:
    """Seconds by stage, of all layers. `inverse` lies in `solver`; packing (`finalize`) goes on beside the rest."""
    rows = []
    for name, run in complete(result).items():
        seconds = run["seconds"]
        save = f"{seconds['save']:.1f}" if "save" in seconds else ""
        stages = [f"{run['stages'][stage]:.1f}" for stage in STAGES]
        rows.append([name, *stages, save, f"{seconds['quantize']:.1f}"])
    return f"{table(['variant', *STAGES, 'save', 'in all, without save'], rows)}\n\n{_made_with(result)}"


def passes_table(result: Json) -> str:
    """Passes through the layers: how many, how many batches ran the mixer, ms a batch with and without Hessians."""
    rows = []
    for name, run in complete(result).items():
        # Kernels are compiled in the first layer.
        steady = [one for one in run["passes"] if one["layer"]] or run["passes"]
        batches = -(-result["settings"]["samples"] // result["settings"]["batch"])
        per_batch = 1e3 / (len(steady) * batches)
        seconds = sum(one["seconds"] for one in steady)
        hessian = sum(one["hessian"] for one in steady)
        rows.append(
            [
                name,
                str(len(run["passes"])),
                str(sum(one["mixers"] for one in run["passes"])),
                f"{seconds * per_batch:.2f}",
                f"{(seconds - hessian) * per_batch:.2f}",
            ]
        )
    header = ["variant", "passes", "batches through a mixer", "ms a batch and pass", "without Hessian"]
    return f"{table(header, rows)}\n\n{_made_with(result)}"


def memory_table(result: Json) -> str:
    """Peaks in main memory and on the GPU, of each variant."""
    runs = complete(result)
    stock = runs.get("stock")
    rows = []
    for name, run in runs.items():
        memory = run["memory"]
        cells = [name]
        for key in ("gpu_gib", "gpu_reserved_gib", "cpu_gib"):
            cells += [f"{memory[key]:.2f}", _ratio(memory[key], stock and stock["memory"][key])]
        rows.append(cells)
    header = ["variant"]
    for what in ("tensors on the GPU, GiB", "held by PyTorch", "main memory"):
        header += [what, "/ stock"]
    place = "in main memory" if result["settings"]["calibration_on_cpu"] else "on the GPU"
    return f"{table(header, rows)}\n\n{_made_with(result)} Hidden states {place}."


def whole_model_minutes(run: Json, settings: Json, layers: int = 64, samples: int = 512) -> float:
    """Minutes for so many layers and rows, from a slice's middle layers: passes grow with the rows, the rest not.

    An extrapolation: nothing of that size was run.
    """
    middle = range(1, len(run["layer_seconds"]) - 1)
    passes = sum(one["seconds"] for one in run["passes"] if one["layer"] in middle)
    rest = sum(run["layer_seconds"][number] for number in middle) - passes
    return (passes * samples / settings["samples"] + rest) / len(middle) * layers / 60


def extrapolations(result: Json) -> list[str]:
    """A line for each variant with middle layers, labelled as what it is."""
    return [
        f"{name}: {whole_model_minutes(run, result['settings']):.0f} min for 64 layers and 512 rows, extrapolated"
        for name, run in complete(result).items()
        if len(run["layer_seconds"]) > 2 and not result["settings"]["tiny"]
    ]


def aims(result: Json) -> list[str]:
    """A line for each aim that the figures decide; none without stock and one of ours, or of the tiny model."""
    runs = {} if result["settings"]["tiny"] else complete(result)
    stock = runs.get("stock")
    found = []
    for name in ("ours", "fast"):
        run = runs.get(name)
        if stock is None or run is None:
            continue
        checks = [
            ("time a layer", layer_seconds(run) / layer_seconds(stock), TIME_TARGET),
            ("solver", solve_seconds(run) / solve_seconds(stock), SOLVE_TARGET),
        ]
        # Set for so many rows: with fewer, what a card has room for is kept there.
        enough = result["settings"]["samples"] >= _MEMORY_ROWS
        if enough and stock["memory"].get("gpu_gib") and run["memory"].get("gpu_gib"):
            checks.append(
                ("GPU memory", run["memory"]["gpu_gib"] / stock["memory"]["gpu_gib"], MEMORY_TARGET)
            )
        worst = loss_difference(run, stock)
        if worst is not None:
            checks.append((f"loss of {worst[0]}, differs by", worst[1], LOSS_TARGET))
        for what, value, target in checks:
            found.append(
                f"{name}: {what} {value:.3g}, aim {target}: {'met' if value <= target else 'missed'}"
            )
    return found


def same_bytes(result: Json) -> list[str]:
    """Whether variants that claim the same bytes as gptqmodel have them."""
    runs = {name: run["bytes"] for name, run in result["runs"].items() if "bytes" in run}
    found = []
    for name in ("definition", "ours"):
        before = next((other for other in ("definition", "stock") if other != name and other in runs), None)
        if name in runs and before is not None:
            equal = "the same bytes" if runs[name] == runs[before] else "OTHER BYTES"
            found.append(f"{name} and {before}: {equal} ({runs[name]})")
    return found


def hessian_table(result: Json) -> str:
    """Error of Hessians, and of the quantized weights made with them, by way of multiplying."""
    rows = []
    for row in result["rows"]:
        for name, way in row["ways"].items():
            rows.append(
                [
                    row["inputs"],
                    name,
                    f"{way['error']:.2e}",
                    f"{way['loss_ratio'] - 1:+.2e}",
                    f"{100 * way['codes_differ']:.3g} %",
                    f"{way['us']:.0f}" if "us" in way else "",
                ]
            )
    header = ["inputs", "products", "error of H", "loss over float64's", "codes that differ", "µs a batch"]
    of = f"{result['tokens']} tokens, {result['columns']} columns"
    return f"{table(header, rows)}\n\n{where(result['environment'])}; {of}."


def quality_table(result: Json) -> str:
    """KLD to the original of both ways, and their difference, with 95 % intervals."""

    def shown(estimate: Json) -> str:
        return f"{estimate['value']:.5f} [{estimate['low']:.5f}, {estimate['high']:.5f}]"

    rows = [
        [name, shown(found["kld_mean"]), f"{100 * found['top1']['value']:.2f}"]
        for name, found in result["checkpoints"].items()
    ]
    (kld,) = [one for one in result["difference"]["differences"] if one["measure"] == "kld_mean"]
    off = kld["difference"]
    less = f"{off['value']:+.6f} [{off['low']:+.6f}, {off['high']:+.6f}], p = {kld['p']:.2f}"
    of = f"{result['settings']['documents']} documents, {result['settings']['tokens']:,} tokens"
    return (
        f"{table(['inverse', 'KLD, nats a token', 'top-1, %'], rows)}\n\n"
        f"The second less the first: {less}. {where(result['environment'])}; {of}."
    )


def bytes_table(result: Json) -> str:
    """Seconds of a solver and a layer of variants that are held against each other byte for byte."""
    runs = complete(result)
    rows = [
        [name, f"{layer_seconds(run):.2f}", f"{solve_seconds(run):.1f}", run["bytes"].replace(", ", ": ")]
        for name, run in runs.items()
    ]
    lines = "\n".join(f"- {line}" for line in same_bytes(result))
    header = ["variant", "s a layer", "solver, s", "packed tensors, and their digest"]
    return f"{table(header, rows)}\n\n{_made_with(result)}\n\n{lines}"


def kill_table(result: Json) -> str:
    """Runs of the command, what kills left, and which files of the targets differ."""
    kills = iter(result["kills"])
    rows = []
    for name, seconds in result["seconds"].items():
        cells = [name, f"{seconds:.0f}"]
        if name.startswith("killed"):
            kill = next(kills)
            cells += [str(kill["exit"]), str(kill["layers"]), "yes" if kill["target"] else "no"]
        else:
            cells += ["0", "", "yes"]
        rows.append(cells)
    given = result["settings"]
    body = table(["run", "s", "exit code", "layers kept", "target there"], rows)
    count = len(result["files"])
    differ = {
        "A run and its repetition": result["again_differs"],
        "A run and the continued one": result["continued_differs"],
    }
    lines = "\n".join(
        f"- {what}: of {count} files these differ: {', '.join(names) or 'none'}"
        for what, names in differ.items()
    )
    size = "the tiny model" if given["tiny"] else "the 27B"
    of = f"{given['layers']} layers of {size}, {given['samples']} rows of at most {given['length']} tokens"
    return f"{body}\n\n{lines}\n\n{where(result['environment'])}; {of}, recipe `{given['recipe']}`."


def report(result: Json) -> str:
    """All of a run, to print."""
    parts = [variants_table(result), stages_table(result), passes_table(result)]
    lines = aims(result) + same_bytes(result) + extrapolations(result)
    return "\n\n".join([*parts, *(["\n".join(f"- {line}" for line in lines)] if lines else [])])


def picture(result: Json) -> Any:
    """Stacked seconds of the stages that run one after another, a bar a variant; a matplotlib figure."""
    from matplotlib.figure import Figure

    runs = complete(result)
    figure = Figure(figsize=(7, 3.2), layout="constrained")
    axes = figure.add_subplot()
    left = [0.0] * len(runs)
    for stage in _IN_TURN:
        seconds = [float(run["stages"][stage]) for run in runs.values()]
        axes.barh(list(runs), seconds, left=left, label=stage)
        left = [before + more for before, more in zip(left, seconds, strict=True)]
    axes.invert_yaxis()
    axes.set_xlabel(f"seconds, {result['settings']['layers']} layers")
    axes.legend(ncols=len(_IN_TURN), fontsize="small", loc="upper center", bbox_to_anchor=(0.5, 1.18))
    return figure


def _ratio(value: float, of: float | None) -> str:
    return "" if not of else f"{value / of:.2f}"


def _made_with(result: Json) -> str:
    given = result["settings"]
    first = next(iter(result["runs"].values()), None)
    on = "" if first is None else f"{where(first['environment'])}; "
    rows = f"{given['samples']} × {given['length']} tokens{', mixed' if given['mixed'] else ''}"
    tiny = " of the tiny model" if given["tiny"] else " of the 27B"
    return f"{on}{given['layers']} layers{tiny}, {rows}, batch {given['batch']}, recipe `{given['recipe']}`."
