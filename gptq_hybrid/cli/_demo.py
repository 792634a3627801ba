"""``qwen36 demo``."""

from __future__ import annotations

import json
import os
import shutil
import signal
import tempfile
from pathlib import Path
from textwrap import shorten
from types import FrameType
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console
from rich.table import Table

from gptq_hybrid.common.errors import HybridError
from gptq_hybrid.common.quiet import output_to_log

if TYPE_CHECKING:
    from gptq_hybrid.demo.run import DemoReport

_REPLY_WIDTH = 72
# The default recipe searches for scales. That takes two cores a minute, and a constructed model does not need it.
_RECIPE = "static"


def demo_command(
    folder: Annotated[
        Path | None,
        typer.Option("--keep", help="Empty folder to work in and keep. Without it, a temporary folder."),
    ] = None,
    recipe: Annotated[str, typer.Option(help="Recipe to quantize with.")] = _RECIPE,
    json_output: Annotated[
        bool, typer.Option("--json", help="Print the report as JSON and nothing else.")
    ] = False,
) -> None:
    """Build, quantize and serve a small checkpoint with MTP.

    Reports the acceptance of its drafts. Needs no GPU and downloads no model.
    """
    from gptq_hybrid.demo.run import run_demo

    if folder is not None and folder.exists() and any(folder.iterdir()):
        raise HybridError(f"{folder} exists already and is not empty", remedy="Choose another folder.")
    work = folder or Path(tempfile.mkdtemp(prefix="qwen36-demo-"))
    work.mkdir(parents=True, exist_ok=True)
    _leave_on_signal(None if folder else work)
    try:
        with output_to_log("demo") as terminal:

            def on_stage(announcement: str) -> None:
                if not json_output:
                    terminal.print(f"[bold]›[/] {announcement}", highlight=False)

            report = run_demo(work, recipe=recipe, on_stage=on_stage)
        if json_output:
            typer.echo(json.dumps(report.to_json(), indent=2, ensure_ascii=False))
        else:
            print_report(Console(), report)
            if folder is not None:
                Console().print(f"Kept in {folder}", highlight=False)
    finally:
        if folder is None:
            shutil.rmtree(work, ignore_errors=True)
    if not report.ok:
        raise typer.Exit(1)


def _leave_on_signal(temporary: Path | None) -> None:
    """On Ctrl-C or SIGTERM, end the server, remove ``temporary`` and exit at once.

    A KeyboardInterrupt would not do: the libraries below swallow one that is raised while they import.
    """
    from gptq_hybrid.common.vllm_server import kill_servers

    screen = os.dup(2)

    def leave(number: int, frame: FrameType | None) -> None:
        kill_servers()
        if temporary is not None:
            shutil.rmtree(temporary, ignore_errors=True)
        os.write(screen, b"\nInterrupted.\n")
        os._exit(128 + number)

    signal.signal(signal.SIGINT, leave)
    signal.signal(signal.SIGTERM, leave)


def print_report(console: Console, report: DemoReport) -> None:
    """Print replies, acceptance by position, sizes and times."""
    table = Table("prompt", "reply", "as constructed")
    for reply in report.replies:
        table.add_row(
            reply.prompt,
            shorten(reply.text, _REPLY_WIDTH, placeholder=" …"),
            "yes" if reply.as_constructed else "[red]no[/]",
        )
    console.print(table)
    acceptance = report.acceptance
    positions = ", ".join(
        f"position {i + 1}: {count}/{acceptance.drafts}" for i, count in enumerate(acceptance.per_position)
    )
    console.print(
        f"[bold]Acceptance {acceptance.rate:.1%}[/] ({acceptance.accepted} of {acceptance.proposed} drafts; "
        f"{positions}), acceptance length {acceptance.length:.2f}",
        highlight=False,
    )
    times = ", ".join(f"{name} {seconds:.0f} s" for name, seconds in report.seconds.items())
    console.print(
        f"{report.source_bytes / 2**20:.1f} → {report.target_bytes / 2**20:.1f} MiB; {times}", highlight=False
    )
