"""How to serve a checkpoint: the line, what its memory goes to, and a first request."""

from __future__ import annotations

from rich.console import Console

from gptq_hybrid.common.tables import plain
from gptq_hybrid.doctor.serve_line import ServeCommand


def serving_lines(command: ServeCommand, checkpoint: str) -> list[str]:
    """Return what to print: commands to copy, each a line of its own, with a sentence before each."""
    lines = []
    if command.fit is None and not command.environment:
        lines.append(
            f"(no flags of memory: for those of a card give --gpu, such as: "
            f"qwen36 check {checkpoint} --gpu 'RTX 4090')"
        )
    elif command.fit is not None:
        lines.append(f"({command.fit.text()})")
    if command.fit is not None and not command.fit.fits:
        lines.append(
            "It does not fit; a recipe with fewer bytes is `compact` (qwen36 quantize --recipe compact)."
        )
    return [command.line, *lines, "Then ask it:", command.curl]


def print_serving(console: Console, command: ServeCommand, checkpoint: str) -> None:
    """Print that, wrapped only by the terminal: a command that we break in two lines cannot be copied."""
    for line in serving_lines(command, checkpoint):
        console.print(plain(line), highlight=False, soft_wrap=True)
