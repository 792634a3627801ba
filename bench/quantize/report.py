"""Tables of the page; written by `python -m bench.pages quantize`. `run.json` is the recipe `reference`."""

from __future__ import annotations

from math import isfinite
from pathlib import Path
from statistics import fmean

from bench.pages import Page
from bench.results import Json
from bench.tables import Column, interval, number, table, where


def layer_seconds(run: Json) -> float:
    """Seconds a layer, between the first and the last; of all layers where there are no others."""
    seconds: list[float] = run["layer_seconds"]
    return fmean(seconds[1:-1] or seconds)


def loss_difference(run: Json, stock: Json) -> float | None:
    """The largest difference of a module's loss to that in ``stock``, as a share of it; None without any.

    Modules that either run fell back for are not numbers: they count as infinitely far where the other is one.
    """
    worst: float | None = None
    for name, loss in run["losses"].items():
        before = stock["losses"].get(name)
        if isinstance(loss, str) and isinstance(before, str):
            continue
        difference = float("inf")
        if isinstance(loss, int | float) and isinstance(before, int | float) and before:
            difference = abs(loss - before) / abs(before)
        if worst is None or not isfinite(difference) or difference > worst:
            worst = difference
    return worst


def whole_model_minutes(run: Json, settings: Json, layers: int = 64, samples: int = 512) -> float:
    """Minutes for so many layers and rows, from a slice's middle layers: passes grow with the rows, the rest not.

    An extrapolation: nothing of that size was run.
    """
    passes = sum(run["pass_seconds"][1:-1])
    seconds = run["layer_seconds"][1:-1]
    return (passes * samples / settings["samples"] + sum(seconds) - passes) / len(seconds) * layers / 60


def same_bytes(result: Json) -> str:
    """Whether `ours` packs the bytes that stock does."""
    ours, stock = (result["runs"][name]["bytes"] for name in ("ours", "stock"))
    return f"`ours` and `stock`: {'the same bytes' if ours == stock else 'OTHER BYTES'} ({ours})"


def _runs(result: Json) -> list[Json]:
    """Runs that got as far as their figures, with their names and stock's run."""
    runs = {name: run for name, run in result["runs"].items() if "layer_seconds" in run}
    return [{"name": name, **run, "of": runs.get("stock")} for name, run in runs.items()]


def _made_with(result: Json) -> str:
    settings, run = result["settings"], next(iter(result["runs"].values()))
    size = "a tiny model" if settings["tiny"] else "the 27B"
    return (
        f"{where(run['environment'])}; {settings['layers']} layers of {size}, {settings['samples']} × "
        f"{settings['length']} tokens, batch 1, recipe `{settings['recipe']}`"
    )


def _against_stock(path: tuple[str, str]) -> Column:
    def value(run: Json) -> float | None:
        return run[path[0]][path[1]] / run["of"][path[0]][path[1]] if run["of"] else None

    return Column("/ stock", value, ".2f")


def speed(result: Json) -> str:
    """Time, memory and loss of every variant against stock."""

    def worst(run: Json) -> float | None:
        return loss_difference(run, run["of"]) if run["of"] and run["name"] != "stock" else None

    columns = [
        Column("variant", "name"),
        Column("s a layer", layer_seconds, ".2f"),
        Column("/ stock", lambda r: layer_seconds(r) / layer_seconds(r["of"]) if r["of"] else None, ".2f"),
        Column("solver, s", ("seconds", "solver"), ".1f"),
        _against_stock(("seconds", "solver")),
        Column("GPU, GiB", ("memory", "gpu_gib"), ".2f"),
        Column("CPU, GiB", ("memory", "cpu_gib"), ".1f"),
        Column("batches through a mixer", "mixers"),
        Column("loss, worst", worst, lambda x: f"{100 * x:.2g} %"),
        Column(
            "64 layers, 512 rows, min (extrapolated)",
            lambda r: whole_model_minutes(r, result["settings"]) if len(r["layer_seconds"]) > 2 else None,
            ".0f",
        ),
    ]
    return table(columns, _runs(result), _made_with(result))


def memory(result: Json) -> str:
    """Peaks in main memory and on the GPU, of each variant."""
    titles = {
        "gpu_gib": "tensors on the GPU, GiB",
        "gpu_reserved_gib": "held by PyTorch",
        "cpu_gib": "main memory",
    }
    columns = [Column("variant", "name")]
    for key, title in titles.items():
        columns += [Column(title, ("memory", key), ".2f"), _against_stock(("memory", key))]
    return table(columns, _runs(result), _made_with(result))


def equal(reference: Json, searched: Json) -> str:
    """The claim of equal bytes, for both recipes."""
    return "\n".join(f"* {same_bytes(result)}; {_made_with(result)}" for result in (reference, searched))


def hessian(result: Json) -> str:
    """Error of Hessians, and of the weights quantized with them, by way of multiplying."""
    rows = [
        {"inputs": row["inputs"], "way": n, **way} for row in result["rows"] for n, way in row["ways"].items()
    ]
    columns = [
        Column("inputs", "inputs"),
        Column("products", "way"),
        Column("error of H", "error", ".2e"),
        Column("loss over float64's", lambda row: row["loss_ratio"] - 1, "+.2e"),
        Column("codes that differ", "codes_differ", lambda share: f"{100 * share:.2g} %"),
    ]
    of = f"{result['tokens']} tokens, {result['columns']} columns"
    return table(columns, rows, f"{where(result['environment'])}; {of}")


def quality(result: Json) -> str:
    """KLD to the original of both inverses, and their difference, with 95 % intervals."""
    columns = [
        Column("inverse", "name"),
        Column("KLD, nats a token", lambda row: interval(row["kld_mean"], ".5f")),
        Column("top-1, %", ("top1", "value"), lambda share: number(100 * share, ".2f")),
    ]
    rows = [{"name": name, **row} for name, row in result["checkpoints"].items()]
    off = result["difference"]
    return table(
        columns,
        rows,
        f"The second less the first: {interval(off, '+.6f')}, p = {off['p']:.2f}; {where(result['environment'])}; "
        f"{result['documents']} documents, {result['tokens']:,} tokens",
    )


_HERE = Path(__file__).parent
REFERENCE, DEFAULT, BYTES, MEMORY, HESSIAN, QUALITY = (
    _HERE / f"{name}.json" for name in ("run", "default", "bytes", "memory", "hessian", "quality")
)
PAGE = Page(
    _HERE / "README.md",
    {
        "default": (speed, DEFAULT),
        "reference": (speed, REFERENCE),
        "bytes": (equal, REFERENCE, BYTES),
        "memory": (memory, MEMORY),
        "hessian": (hessian, HESSIAN),
        "quality": (quality, QUALITY),
    },
)
