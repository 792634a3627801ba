"""What `engine.py` found, as tables; no torch here."""

from __future__ import annotations

from collections.abc import Mapping
from statistics import median
from typing import Any

from bench.results import Json
from bench.tables import table

# What a draft reads of the 27B in the checkpoint's own weights: shapes [n, k] of the MTP layer and the output head.
MTP_LINEARS = {
    "fc": (5120, 10240),
    "qkv": (14336, 5120),
    "o": (5120, 6144),
    "gate_up": (34816, 5120),
    "down": (5120, 17408),
}
HEAD_WIDTH, VOCABULARY = 5120, 248320
# Layers of `none-4`, and of the 27B.
_FEW, _ALL = 4, 64
_WITHOUT = ("none", "none-4")
# Forms of linears and head where drafts come from the model's own head.
_OWN_HEAD = {"stock": ("bf16", "bf16"), "auto": ("w8", "bf16")}
_BITS = {"bf16": 16.0, "fp8": 8.0, "w4": 4.0 + 16.0 / 32, "w8": 8.0 + 16.0 / 128}
# Linears that a form has in another.
_OTHERWISE = {("w4", "fc"): "w8"}


def step_ms(run: Mapping[str, Any], batch: str) -> float:
    """Median milliseconds a step on the clock."""
    times: list[float] = run["steps"][batch]["ms"]
    return median(times)


def gpu_ms(run: Mapping[str, Any], batch: str) -> float | None:
    """Milliseconds of kernels in a step."""
    found: float | None = run["steps"][batch]["gpu_ms"]
    return found


def bytes_of_a_draft(way: str) -> dict[str, int]:
    """Bytes of weights that one draft reads: of the MTP layer's linears, and of the output head."""
    form, _, count = way.partition(":")
    of_linears, of_head = _OWN_HEAD.get(form, (form, form))
    forms = {name: _OTHERWISE.get((of_linears, name), of_linears) for name in MTP_LINEARS}
    return bytes_by_form({**forms, "head": of_head}, int(count) if count else VOCABULARY)


def bytes_by_form(forms: Mapping[str, str], tokens: int) -> dict[str, int]:
    """The same by the form of each linear, and of a ``head`` over so many tokens."""
    linears = sum(n * k * _BITS[forms[name]] for name, (n, k) in MTP_LINEARS.items())
    return {"linears": int(linears / 8), "head": int(tokens * HEAD_WIDTH * _BITS[forms["head"]] / 8)}


def report(result: Json) -> str:
    """Steps, and what drafts add to one; then the bytes that a step reads for them."""
    return "\n\n".join([step_table(result), bytes_table(result)])


def step_table(result: Json) -> str:
    """Milliseconds a step, by kernels, and the share of drafts in it."""
    runs = result["runs"]
    none, stock = runs.get("none"), runs.get("stock")
    batches = next(iter(runs.values()))["steps"]
    rows = []
    for name, run in runs.items():
        cells = [name]
        for batch in batches:
            step = gpu_ms(run, batch)
            cells.append(f"{step_ms(run, batch):.2f}")
            cells.append("" if step is None else f"{step:.3f}")
            cells += ["", "", ""] if name in _WITHOUT else _against(run, none, stock, batch)
            ratio = None if name in _WITHOUT else whole_step_ratio(result, name, batch)
            cells[-1] = "" if ratio is None else f"{ratio:.3f}"
        rows.append(cells)
    header = ["drafts"]
    for batch in batches:
        header += [
            f"batch {batch}: ms a step, clock",
            "kernels",
            "of it drafts",
            "drafts over stock's",
            "step of 64 layers over stock's",
        ]
    environment = next(iter(runs.values()))["environment"]
    where = ", ".join(f"{key} {value}" if key != "device" else value for key, value in environment.items())
    return f"{table(header, rows)}\n\n{where}; {result['settings']['layers']} layers, two drafts a step."


def _against(
    run: Mapping[str, Any], none: Mapping[str, Any] | None, stock: Mapping[str, Any] | None, batch: str
) -> list[str]:
    if none is None:
        return ["", "", ""]
    base, mine = gpu_ms(none, batch), gpu_ms(run, batch)
    if base is None or mine is None:
        return ["", "", ""]
    theirs = None if stock is None else gpu_ms(stock, batch)
    over = "" if theirs is None else f"{(mine - base) / (theirs - base):.3f}"
    return [f"{mine - base:.3f}", over, ""]


def whole_step_ratio(result: Json, way: str, batch: str) -> float | None:
    """A step of 64 layers over one with vLLM's drafts, from what a layer adds to a step without drafts.

    None where `none`, `none-4` or `stock` was not run, or not on a GPU.
    """
    runs, layers = result["runs"], result["settings"]["layers"]
    if any(name not in runs for name in ("none", "none-4", "stock", way)) or layers == _FEW:
        return None
    none, few, stock, mine = (gpu_ms(runs[name], batch) for name in ("none", "none-4", "stock", way))
    if none is None or few is None or stock is None or mine is None:
        return None
    more = (none - few) / (layers - _FEW) * (_ALL - layers)
    return (mine + more) / (stock + more)


def bytes_table(result: Json) -> str:
    """What two drafts read, what that takes at the bandwidth of the card, and what they took."""
    rows = []
    runs = result["runs"]
    bandwidth = median([run["bandwidth"] for run in runs.values() if run["bandwidth"]] or [0.0])
    for name, run in runs.items():
        if name in _WITHOUT:
            continue
        read = bytes_of_a_draft(name)
        count = result["settings"]["drafts"]
        whole = count * sum(read.values())
        took = _against(run, runs.get("none"), None, "1")[0]
        rows.append(
            [
                name,
                f"{count * read['linears'] / 1e9:.2f}",
                f"{count * read['head'] / 1e9:.2f}",
                f"{whole / 1e9:.2f}",
                f"{whole / bandwidth * 1e3:.3f}" if bandwidth else "",
                took,
            ]
        )
    header = ["drafts", "MTP linears, GB", "output head, GB", "together", "ms at the card's bandwidth",
              "ms they took, batch 1"]  # fmt: skip
    note = f"{bandwidth / 1e12:.2f} TB/s, measured" if bandwidth else "bandwidth not measured"
    return f"{table(header, rows)}\n\nWeights that the drafts of a step read; {note}."
