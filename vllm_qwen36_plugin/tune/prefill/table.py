"""The result of ``qwen36 tune prefill`` as a table of at most 110 columns, and in words."""

from __future__ import annotations

import json
import shlex
from collections.abc import Sequence
from pathlib import Path

from rich.table import Table
from rich.text import Text

from gptq_hybrid.common.tables import plain, report_table
from gptq_hybrid.common.terminal import SETTINGS, out
from vllm_qwen36_plugin.options import SECTION, PluginOptions
from vllm_qwen36_plugin.prefill.banner import gemm_suffix
from vllm_qwen36_plugin.prefill.profile import EIGHT_BIT
from vllm_qwen36_plugin.prefill.shape import Shape

from .result import MODES, Tuned

_LINES = 8
# Tokens of a chunk of a prompt by `vllm serve`'s defaults, on cards below 70 GiB and above.
_CHUNKS = (2048, 8192)
# Tokens that start-up wants a profile to reach, if that many may come.
_ENOUGH = 8192


def times_table(tuned: Tuned) -> Table:
    """Make the table: a section per shape with microseconds by tokens and route, and the route of each mode."""
    modes = _modes(tuned)
    table = report_table(
        tuned.profile.source,
        "µs a call; green: the route that a mode in the last columns takes; the profile has every number of tokens",
    )
    table.add_column("linear", overflow="fold")
    table.add_column("tokens", justify="right")
    for route in tuned.routes:
        table.add_column("vLLM" if route == "stock" else route, justify="right")
    for mode in modes:
        table.add_column(f"prefill={mode}")
    for shape in tuned.linears:
        times = tuned.profile.times_us[shape]
        labels, counts = _labels(tuned, shape), choose_counts(sorted(times["stock"]))
        lines = max(len(labels), len(counts))
        for i in range(lines):
            label = Text(labels[i] if i < len(labels) else "", style="bold" if i == 0 else "")
            cells = _cells(tuned, shape, counts[i]) if i < len(counts) else []
            table.add_row(label, *cells, end_section=i == lines - 1)
    return table


def choose_counts(counts: Sequence[int]) -> list[int]:
    """Choose at most eight numbers of tokens to show: always the largest, powers of two before others."""
    chosen = sorted(counts, key=lambda tokens: (tokens != max(counts), tokens & (tokens - 1) != 0, -tokens))
    return sorted(chosen[:_LINES])


def _cells(tuned: Tuned, shape: Shape, tokens: int) -> list[Text]:
    times = tuned.profile.times_us[shape]
    chosen = [tuned.route_for(shape, tokens, mode) for mode in _modes(tuned)]
    cells = [Text(f"{tokens:,}")]
    for route in tuned.routes:
        us = times.get(route, {}).get(tokens)
        cells.append(Text("–" if us is None else _us(us), style="green" if route in chosen else ""))
    return [*cells, *(Text("vLLM" if route == "stock" else route) for route in chosen)]


def _us(us: float) -> str:
    return f"{us:,.1f}" if us < 1000 else f"{us:,.0f}"


def _labels(tuned: Tuned, shape: Shape) -> list[str]:
    linears, starts = tuned.linears[shape], tuned.profile.starts[shape]
    bits = f"{shape.bits} bit, " + (
        "one scale per column" if shape.group_size == -1 else f"groups of {shape.group_size}"
    )
    labels = [linears.name, f"{shape.k} × {shape.n}, {bits}", f"{linears.count} × {kernel_name(shape)}"]
    for route in tuned.routes[1:]:
        start = getattr(starts, route)
        name = route + (gemm_suffix(starts.fp8_gemm) if route == "fp8" else "")
        if route in tuned.profile.times_us[shape]:
            labels.append(f"{route} never" if start is None else f"{name} from {start:,} tokens")
    return labels


def kernel_name(shape: Shape) -> str:
    """Give vLLM's name of its kernel with this layout."""
    return shape.layout.capitalize()


def _modes(tuned: Tuned) -> list[str]:
    return [mode for mode, routes in MODES.items() if routes[0] in tuned.routes]


def meaning(tuned: Tuned, path: Path, *, own_place: bool, scratch_mib: int) -> list[str]:
    """Say what the result means for serving, one paragraph each.

    Args:
        tuned: the result.
        path: the file of the profile.
        own_place: whether start-up looks there by itself.
        scratch_mib: MiB of scratch that were measured with.
    """
    paragraphs = [_usage(path, own_place=own_place, scratch_mib=scratch_mib)]
    starts = [
        start
        for shape in tuned.linears
        for route in tuned.routes[1:]
        if (start := getattr(tuned.profile.starts[shape], route)) is not None
    ]
    most = max(tuned.counts)
    if not starts:
        paragraphs.append(
            f"No route was faster than vLLM's own kernels up to {most:,} tokens: on this GPU every linear is left "
            "to them."
        )
        return paragraphs
    if min(starts) > 1:
        paragraphs.append(
            f"Up to {min(starts) - 1:,} tokens, decoding included, vLLM's kernels serve as before."
        )
    paragraphs += [_chunk(tuned, chunk) for chunk in [c for c in _CHUNKS if c in tuned.counts] or [most]]
    asked = [
        f"--additional-config {shlex.quote(json.dumps({SECTION: {'prefill': route}}))}"
        for route in tuned.routes
        if route in EIGHT_BIT and any(getattr(tuned.profile.starts[shape], route) for shape in tuned.linears)
    ]
    if asked:
        paragraphs.append(f"Activations are rounded to 8 bits only if you ask for it: {' or '.join(asked)}")
    if most < _ENOUGH:
        paragraphs.append(
            f"Measured up to {most:,} tokens. If --max-num-batched-tokens lets more come, start-up measures again."
        )
    return paragraphs


def _usage(path: Path, *, own_place: bool, scratch_mib: int) -> str:
    options: dict[str, object] = {}
    if not own_place:
        options["prefill_profile"] = str(path.absolute())
    if scratch_mib != PluginOptions().prefill_scratch_mib:
        options["prefill_scratch_mib"] = scratch_mib
    if own_place:
        text = (
            f"{path} is used from the next start of vllm serve on this GPU, with the versions now installed"
        )
    else:
        text = f"{path} is used if vllm serve is told to"
    if not options:
        return f"{text}."
    return f"{text}: --additional-config {shlex.quote(json.dumps({SECTION: options}))}"


def _chunk(tuned: Tuned, tokens: int) -> str:
    stock = tuned.milliseconds(tokens, None)
    modes = []
    for mode in _modes(tuned):
        ms = tuned.milliseconds(tokens, mode)
        change = f"{100 * (ms / stock - 1):+.1f} %".replace("-", "−")
        modes.append(
            f"as many with prefill={mode}" if ms == stock else f"{ms:,.1f} with prefill={mode} ({change})"
        )
    count = sum(linears.count for linears in tuned.linears.values())
    return (
        f"{tokens:,} tokens of a prompt at once spend {stock:,.1f} ms in the model's {count} linears by vLLM's "
        f"kernels, {', '.join(modes)}."
    )


def show(
    tuned: Tuned, path: Path, plot: Path | None, notes: list[str], *, own_place: bool, scratch_mib: int
) -> None:
    """Print the meaning, the table and the notes; arguments as in :func:`meaning`."""
    screen = out()
    for text in meaning(tuned, path, own_place=own_place, scratch_mib=scratch_mib):
        screen.say(text)
    if not SETTINGS.quiet:
        screen.say("")
        screen.print(times_table(tuned))
    for note in (*notes, *tuned.notes):
        screen.print(f"[yellow]![/] {plain(note)}", soft_wrap=True)
    if plot is not None:
        screen.say(f"Drawn in {plot}.")
