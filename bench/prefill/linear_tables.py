"""Tables from what `linear.py` wrote. No torch here."""

from __future__ import annotations

import math

from bench.results import Json
from bench.tables import table, where

# By module, how many layers of the 27B have it: `layers.MODULES`, which needs torch; a test compares them.
LAYERS = {"qkv": 16, "qkvz": 48, "o/out": 64, "gate_up": 64, "down": 64}
_NAMES = {
    "stock": "stock",
    "plugin": "plugin, exact",
    "plugin_fp8": "plugin, fp8",
    "cublas": "dense",
}


def us(row: Json, name: str) -> float | None:
    """Microseconds a call."""
    found = row["times"].get(name)
    return None if found is None else float(found["us"])


def passes(result: Json) -> dict[str, dict[int, dict[str, float]]]:
    """By layout and number of rows: milliseconds that the quantized linears of 64 layers take, by variant.

    Numbers of rows and variants that some shape lacks are left out.
    """
    found: dict[str, dict[int, dict[str, float]]] = {}
    for layout in dict.fromkeys(shape["shape"].split()[0] for shape in result["shapes"]):
        shapes = [shape for shape in result["shapes"] if shape["shape"].startswith(layout + " ")]
        if {shape["module"] for shape in shapes} != set(LAYERS):
            continue
        by_m = [{row["m"]: row for row in shape["rows"]} for shape in shapes]
        for m in sorted(set.intersection(*map(set, by_m))):
            rows = [rows[m] for rows in by_m]
            for name in _NAMES:
                each = [us(row, name) for row in rows]
                if None not in each:
                    total = sum(
                        LAYERS[s["module"]] * t for s, t in zip(shapes, each, strict=True) if t is not None
                    )
                    found.setdefault(layout, {}).setdefault(m, {})[name] = total / 1e3
    return found


def environment(result: Json) -> str:
    """Card, versions and settings."""
    place, settings = result["environment"], result["settings"]
    return (
        f"{where(place)}, triton {place['triton']}, driver {place['driver']}; {settings['dtype']}, groups of "
        f"{settings['group_size']}, scratch {settings['scratch_mib']} MiB"
    )


def pass_table(result: Json) -> str:
    """All quantized linears of 64 layers."""
    rows = []
    for layout, by_m in passes(result).items():
        for m, times in by_m.items():
            stock = times["stock"]
            cells = [layout, str(m), f"{stock:.2f}"]
            cells += [
                f"{times[n] / stock:.2f}" if n in times else "" for n in ("plugin", "plugin_fp8", "cublas")
            ]
            rows.append(cells)
    header = ["stock", "M", "stock, ms", "exact", "fp8", "dense all along"]
    return (
        f"{table(header, rows)}\n\n{environment(result)}. Linears of 64 layers in CUDA graphs, sums of medians; "
        "the last three as a share of stock, with the starts that start-up found."
    )


def shape_table(result: Json) -> str:
    """Every shape and number of rows."""
    rows = []
    for shape in result["shapes"]:
        starts = shape["starts"]
        for row in shape["rows"]:
            stock = us(row, "stock")
            assert stock is not None
            cells = [f"{shape['module']}, {shape['shape'].split()[0]}", str(row["m"]), f"{stock:.1f}"]
            for name in ("exact", "fp8", "plugin", "plugin_fp8", "cublas"):
                time = us(row, name)
                cells.append("" if time is None else f"{time / stock:.2f}")
            cells += [f"{row['error']['exact']:.4f}" if "exact" in row["error"] else ""]
            cells += [f"{row['error']['fp8']:.3f}" if "fp8" in row["error"] else ""]
            rows.append(cells)
        rows[-len(shape["rows"])][0] += f" (exact from {starts['exact']}, fp8 from {starts['fp8']})"
    header = ["module, layout", "M", "stock, µs", "exact", "fp8", "plugin, exact", "plugin, fp8", "dense"]
    return (
        f"{table([*header, 'error, exact', 'error, fp8'], rows)}\n\n{environment(result)}. Shares of stock; "
        "errors: root mean square against float32, relative."
    )


def worst(result: Json, *, elsewhere: bool = False) -> list[tuple[float, str]]:
    """The plugin's time over stock's at its worst, for each way: ratio, and where.

    ``elsewhere``: of calls with as many rows as take another path than stock's kernel.
    """
    found = []
    for name, paths in (("plugin", ("exact",)), ("plugin_fp8", ("exact", "fp8"))):
        ratios = [
            (time / stock, f"{_NAMES[name]}: {shape['shape']}, M = {row['m']}")
            for shape in result["shapes"]
            for row in shape["rows"]
            if (time := us(row, name)) is not None and (stock := us(row, "stock"))
            if not elsewhere or any(row["m"] >= (shape["starts"][path] or math.inf) for path in paths)
        ]
        if ratios:
            found.append(max(ratios))
    return found


def worst_table(result: Json) -> str:
    """Any shape, any number of rows; and those that take another path."""
    rows = [[f"{ratio:.3f}", place, ""] for ratio, place in worst(result)]
    rows += [[f"{ratio:.3f}", place, "another path"] for ratio, place in worst(result, elsewhere=True)]
    return table(["over stock at worst", "where", "of calls that take"], rows)


def expansion_table(result: Json) -> str:
    """Writing a tile, beside filling it, and beside moving as many bytes at the rate of the fill."""
    rows = []
    for shape in result["shapes"]:
        for path, found in shape["expansion"].items():
            k = int(shape["shape"].split()[1].split("x")[0])
            values = found["columns"] * k
            # Read besides: half a byte a value, and a scale of two bytes for each group of 128.
            read = values / 2 + values / result["settings"]["group_size"] * 2
            floor = found["fill"] * (found["bytes"] + read) / found["bytes"]
            rate = found["bytes"] / found["fill"] / 1e6
            rows.append(
                [
                    f"{shape['module']}, {shape['shape'].split()[0]}",
                    path,
                    f"{found['bytes'] / 1e6:.0f}",
                    f"{found['fill']:.1f} ({rate:.2f} TB/s)",
                    f"{found['expand']:.1f}",
                    f"{found['expand'] / found['fill']:.2f}",
                    f"{found['expand'] / floor:.2f}",
                ]
            )
    header = ["module, layout", "path", "MB", "fill, µs", "expand, µs", "over fill", "over its bytes' time"]
    return (
        f"{table(header, rows)}\n\n{environment(result)}. The last column: over the time of what it reads and "
        "writes at the rate of the fill."
    )


def sizes_table(result: Json) -> str:
    """The same path with other sizes of scratch."""
    names = sorted(
        {name for s in result["shapes"] for row in s["rows"] for name in row["times"] if "@" in name},
        key=lambda name: (name.split("@")[0], int(name.split("@")[1])),
    )
    if not names:
        return "Not measured."
    rows = []
    for shape in result["shapes"]:
        for row in shape["rows"]:
            if not any(name in row["times"] for name in names):
                continue
            cells = [f"{shape['module']}, {shape['shape'].split()[0]}", str(row["m"])]
            for name in names:
                usual, time = us(row, name.split("@")[0]), us(row, name)
                cells.append("" if time is None or not usual else f"{time / usual:.2f}")
            rows.append(cells)
    size = result["settings"]["scratch_mib"]
    body = table(["module, layout", "M", *names], rows)
    return f"{body}\n\n{environment(result)}. Over the same path with {size} MiB."


def e4m3_table(result: Json) -> str:
    """TFLOP/s by module, rows and GEMM, and of all linears of a pass."""
    names = list(dict.fromkeys(name for row in result["rows"] for name in row["tflops"]))
    rows = []
    for m in dict.fromkeys(row["m"] for row in result["rows"]):
        of_m = [row for row in result["rows"] if row["m"] == m]
        each = {row["module"]: row["tflops"] for row in of_m}
        rows += [
            [module, str(m), *(str(tflops.get(name, "")) for name in names)]
            for module, tflops in each.items()
        ]
        work = {row["module"]: row["n"] * row["k"] * LAYERS[row["module"]] for row in of_m}
        cells = []
        for name in names:
            of = {module: each[module].get(name) for module in work}
            whole = [work[module] / rate for module, rate in of.items() if isinstance(rate, int | float)]
            cells.append(f"{sum(work.values()) / sum(whole):.0f}" if len(whole) == len(work) else "")
        rows.append(["all of a pass", str(m), *cells])
    return f"{table(['module', 'M', *names], rows)}\n\n{where(result['environment'])}. TFLOP/s."


def roofline_table(result: Json) -> str:
    """How far the paths are from what the card was seen to do."""
    dense = [
        2e-6 * row["m"] * k * n / us(row, "cublas")  # type: ignore[operator]
        for shape in result["shapes"]
        for k, n in [map(int, shape["shape"].split()[1].split("x"))]
        for row in shape["rows"]
        if us(row, "cublas")
    ]
    fills = [
        found["bytes"] / found["fill"] / 1e6
        for shape in result["shapes"]
        for found in shape["expansion"].values()
    ]
    peak, bandwidth = max(dense), max(fills)
    rows = []
    for shape in result["shapes"]:
        k, n = map(int, shape["shape"].split()[1].split("x"))
        for row in shape["rows"]:
            time = us(row, "exact")
            if time is None or row["m"] < 512:
                continue
            compute = 2e-6 * row["m"] * k * n / peak
            # The packed weight once, the dense one written and read, x read and the result written.
            moved = k * n * (0.5 + 2 + 2) + 2 * row["m"] * (k + n)
            memory = moved / bandwidth / 1e6
            rows.append(
                [
                    f"{shape['module']}, {shape['shape'].split()[0]}",
                    str(row["m"]),
                    f"{compute:.0f}",
                    f"{memory:.0f}",
                    f"{time:.0f}",
                    f"{max(compute, memory) / time:.2f}",
                ]
            )
    header = ["module, layout", "M", "operations, µs", "bytes, µs", "exact, µs", "share of the roof"]
    return (
        f"{table(header, rows)}\n\n{environment(result)}. At the best rates seen in this run: {peak:.0f} TFLOP/s "
        f"(dense GEMM), {bandwidth:.2f} TB/s (fill)."
    )
