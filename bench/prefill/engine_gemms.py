"""Which GEMM multiplies in e4m3: what start-up measured of a whole path by each. No torch here."""

from __future__ import annotations

from bench.prefill.engine_notes import environments, noted
from bench.prefill.engine_results import PLUGIN
from bench.prefill.linear_tables import LAYERS
from bench.results import Json
from bench.tables import table

# By the first words of a shape, after its layout: modules of `linear_tables.LAYERS`.
_SHAPES = {
    "5120x14336": "qkv",
    "5120x16384": "qkvz",
    "6144x5120": "o/out",
    "5120x34816": "gate_up",
    "17408x5120": "down",
}
_PATHS = {
    "stock": "stock",
    "exact": "exact",
    "fp8_vllm": "fp8, vLLM's GEMM",
    "fp8_torch": "fp8, PyTorch's GEMM",
}


def gemms_table(result: Json) -> str:
    """A row a number of rows: ms that the linears of 64 layers take by each path, and one GEMM over the other."""
    shapes = result["runs"][PLUGIN]["plugin"]["profile"]["shapes"]
    times = {_SHAPES[key.split()[1]]: entry["times_us"] for key, entry in shapes.items()}
    if set(times) != set(LAYERS):
        raise ValueError(f"the profile has {sorted(times)}, and the 27B {sorted(LAYERS)}")
    rows = []
    for m in times["qkv"]["stock"]:
        ms = {
            path: sum(LAYERS[module] * by[path][m] for module, by in times.items()) / 1e3 for path in _PATHS
        }
        ratio = ms["fp8_torch"] / ms["fp8_vllm"]
        rows.append([m, *(f"{ms[path]:.1f}" for path in _PATHS), f"{ratio:.2f}"])
    header = ["M", *_PATHS.values(), "PyTorch's over vLLM's"]
    note = "ms of the linears of 64 layers, one call after another, sums of medians"
    return noted(table(header, rows), environments(result), note)
