"""What ``qwen36 tune`` found, as a table of at most 110 columns, and in words."""

from __future__ import annotations

import json
import shlex
from collections.abc import Sequence
from pathlib import Path

from rich.console import Console
from rich.table import Table
from rich.text import Text

from gptq_hybrid.common.tables import plain, report_table
from vllm_qwen36_plugin.options import SECTION, PluginOptions
from vllm_qwen36_plugin.prefill.banner import by_gemm
from vllm_qwen36_plugin.prefill.shape import Shape

from .result import MODES, Tuned

_LINES = 8
# Chunks of a prompt: what `vllm serve` makes of it by default on cards below 70 GiB, and above.
_CHUNKS = (2048, 8192)
# Rows up to which start-up wants a profile to reach, if that many may come.
_ENOUGH = 8192


def times_table(tuned: Tuned) -> Table:
    """A section a shape: microseconds by number of rows and path, and the path that ``auto`` and ``fp8`` take."""
    modes = _modes(tuned)
    table = report_table(
        tuned.profile.source,
        "µs a call; green: what the mode in the last columns takes; the profile has all rows measured",
    )
    table.add_column("linear", overflow="fold")
    table.add_column("rows", justify="right")
    for path in tuned.paths:
        table.add_column("vLLM" if path == "stock" else path, justify="right")
    for mode in modes:
        table.add_column(f"prefill={mode}")
    for shape in tuned.linears:
        times = tuned.profile.times_us[shape]
        labels, rows = _labels(tuned, shape), shown_rows(sorted(times["stock"]))
        for i in range(max(len(labels), len(rows))):
            label = Text(labels[i] if i < len(labels) else "", style="bold" if i == 0 else "")
            cells = _cells(tuned, shape, rows[i]) if i < len(rows) else []
            table.add_row(label, *cells, end_section=i == max(len(labels), len(rows)) - 1)
    return table


def shown_rows(rows: Sequence[int]) -> list[int]:
    """At most eight numbers of rows, powers of two before others, the largest always."""
    chosen = sorted(rows, key=lambda count: (count != max(rows), count & (count - 1) != 0, -count))
    return sorted(chosen[:_LINES])


def _cells(tuned: Tuned, shape: Shape, rows: int) -> list[Text]:
    times = tuned.profile.times_us[shape]
    taken = [tuned.taken(shape, rows, mode) for mode in _modes(tuned)]
    cells = [Text(f"{rows:,}")]
    for path in tuned.paths:
        us = times.get(path, {}).get(rows)
        cells.append(Text("–" if us is None else _us(us), style="green" if path in taken else ""))
    return [*cells, *(Text("vLLM" if path == "stock" else path) for path in taken)]


def _us(us: float) -> str:
    return f"{us:,.1f}" if us < 1000 else f"{us:,.0f}"


def _labels(tuned: Tuned, shape: Shape) -> list[str]:
    linears, starts = tuned.linears[shape], tuned.profile.starts[shape]
    bits = f"{shape.bits} bit, " + (
        "a scale a column" if shape.group_size == -1 else f"groups of {shape.group_size}"
    )
    found = [linears.name, f"{shape.k} × {shape.n}, {bits}", f"{linears.count} × {kernel_name(shape)}"]
    for path in tuned.paths[1:]:
        start, name = getattr(starts, path), path + (by_gemm(starts.fp8_gemm) if path == "fp8" else "")
        if path in tuned.profile.times_us[shape]:
            found.append(f"{path} never" if start is None else f"{name} from {start:,} rows")
    return found


def kernel_name(shape: Shape) -> str:
    """What vLLM calls its kernel of this layout."""
    return shape.layout.capitalize()


def _modes(tuned: Tuned) -> list[str]:
    return [mode for mode, paths in MODES.items() if paths[0] in tuned.paths]


def meaning(tuned: Tuned, path: Path, *, own_place: bool, scratch_mib: int) -> list[str]:
    """What it means for serving, a paragraph each.

    Args:
        path: the file of the profile.
        own_place: whether start-up looks there by itself.
        scratch_mib: MiB that were measured with.
    """
    found = [_usage(path, own_place=own_place, scratch_mib=scratch_mib)]
    starts = [
        start
        for shape in tuned.linears
        for name in tuned.paths[1:]
        if (start := getattr(tuned.profile.starts[shape], name)) is not None
    ]
    rows = tuned.rows
    if not starts:
        found.append(
            f"Nothing was faster than vLLM's own kernels up to {max(rows):,} rows: on this GPU every linear is "
            "left to them."
        )
        return found
    if min(starts) > 1:
        found.append(f"Up to {min(starts) - 1:,} rows, decoding among them, vLLM's kernels serve as before.")
    found += [_chunk(tuned, chunk) for chunk in [c for c in _CHUNKS if c in rows] or [max(rows)]]
    if any(tuned.profile.starts[shape].fp8 is not None for shape in tuned.linears):
        options = json.dumps({SECTION: {"prefill": "fp8"}})
        found.append(
            f"Activations are rounded to 8 bits only where asked for: --additional-config {shlex.quote(options)}"
        )
    if max(rows) < _ENOUGH:
        found.append(
            f"Measured up to {max(rows):,} rows. Where --max-num-batched-tokens lets more come, start-up measures "
            "again."
        )
    return found


def _usage(path: Path, *, own_place: bool, scratch_mib: int) -> str:
    options: dict[str, object] = {}
    if not own_place:
        options["prefill_profile"] = str(path.absolute())
    if scratch_mib != PluginOptions().prefill_scratch_mib:
        options["prefill_scratch_mib"] = scratch_mib
    if own_place:
        text = f"{path} is used from the next start of vllm serve on this GPU on, with the versions now installed"
    else:
        text = f"{path} is used where vllm serve is told to"
    if not options:
        return f"{text}."
    return f"{text}: --additional-config {shlex.quote(json.dumps({SECTION: options}))}"


def _chunk(tuned: Tuned, rows: int) -> str:
    stock = tuned.milliseconds(rows, None)
    modes = []
    for mode in _modes(tuned):
        ms = tuned.milliseconds(rows, mode)
        change = f"{100 * (ms / stock - 1):+.1f} %".replace("-", "−")
        modes.append(
            f"as many with prefill={mode}" if ms == stock else f"{ms:,.1f} with prefill={mode} ({change})"
        )
    count = sum(linears.count for linears in tuned.linears.values())
    return (
        f"{rows:,} tokens of a prompt at once spend {stock:,.1f} ms in the model's {count} linears by vLLM's "
        f"kernels, {', '.join(modes)}."
    )


def show(
    tuned: Tuned, target: Path, plot: Path | None, notes: list[str], *, own_place: bool, scratch_mib: int
) -> None:
    """Print the table, notes and what it means; arguments as in :func:`meaning`."""
    console = Console()
    console.print(times_table(tuned))
    for note in (*notes, *tuned.notes):
        console.print(f"[yellow]![/] {plain(note)}", highlight=False)
    for text in meaning(tuned, target, own_place=own_place, scratch_mib=scratch_mib):
        console.print(plain(text), highlight=False, soft_wrap=True)
    if plot is not None:
        console.print(plain(f"{plot} shows it."), highlight=False, soft_wrap=True)
