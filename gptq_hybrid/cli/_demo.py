"""``qwen36 demo``."""

from __future__ import annotations

import os
import shutil
import signal
import tempfile
from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path
from textwrap import shorten
from types import FrameType
from typing import TYPE_CHECKING, Annotated

import typer

from gptq_hybrid.common.envelope import print_json
from gptq_hybrid.common.errors import HybridError
from gptq_hybrid.common.options import AsJson
from gptq_hybrid.common.outputs import refuse_unwritable_folder
from gptq_hybrid.common.progress import counting_bars
from gptq_hybrid.common.quiet import output_to_log
from gptq_hybrid.common.tables import plain, report_table
from gptq_hybrid.common.terminal import SETTINGS, Screen, Step, out, print_next
from gptq_hybrid.common.units import duration_text, size_text
from gptq_hybrid.recipes import load_recipe

if TYPE_CHECKING:
    from gptq_hybrid.demo.run import DemoReport

# The default recipe searches for scales. That takes two cores a minute, and a constructed model does not need it.
_RECIPE = "static"
_REPLY_WIDTH = 34


def demo_command(
    folder: Annotated[
        Path | None,
        typer.Option("--keep", help="Empty folder to work in and keep. Without it, a temporary folder."),
    ] = None,
    recipe: Annotated[str, typer.Option(help="Recipe to quantize with.")] = _RECIPE,
    as_json: AsJson = False,
) -> None:
    """Build, quantize and serve a small checkpoint with MTP.

    Reports the acceptance of its drafts. Needs no GPU and downloads no model.

    Exit code 0: replies and drafts are as constructed. 1: they are not. 2: refused, or a stage failed.
    """
    load_recipe(recipe)
    _refuse_missing()
    if folder is not None:
        if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
            raise HybridError(f"{folder} exists already and is not empty", remedy="Choose another folder.")
        refuse_unwritable_folder("--keep", folder)
    from gptq_hybrid.demo.run import run_demo

    work = folder or Path(tempfile.mkdtemp(prefix="qwen36-demo-"))
    work.mkdir(parents=True, exist_ok=True)
    _leave_on_signal(None if folder else work)
    try:
        with output_to_log("demo") as terminal, counting_bars(terminal) as progress:
            layers = progress.add_task("layers", total=None, visible=False)

            def on_stage(announcement: str) -> None:
                progress.update(layers, visible=False)
                if not SETTINGS.quiet:
                    terminal.print(f"[bold]›[/] {plain(announcement)}")

            def on_layer(done: int, total: int) -> None:
                progress.update(layers, completed=done, total=total, visible=True)

            report = run_demo(
                work, recipe=recipe, on_stage=on_stage, on_layer=on_layer, on_wait=progress.wait
            )
        steps = _next_steps(folder)
        if as_json:
            print_json(report.to_json(), format="GPTQ", steps=steps)
        else:
            print_report(out(), report)
            if folder is not None:
                out().say(f"Kept in {folder}")
            print_next(*steps)
    finally:
        if folder is None:
            shutil.rmtree(work, ignore_errors=True)
    if not report.ok:
        raise typer.Exit(1)


def _refuse_missing() -> None:
    """Refuse to begin what would end after minutes for want of a library."""
    missing = [name for name in ("torch", "transformers", "gptqmodel", "vllm") if find_spec(name) is None]
    if missing:
        raise HybridError(
            f"{' and '.join(missing)} {'is' if len(missing) == 1 else 'are'} not installed, and the demo quantizes "
            "and serves",
            remedy="Install both extras: pip install '.[quantize,serve]'; without a GPU '.[quantize,cpu]'",
        )


def _next_steps(folder: Path | None) -> Sequence[Step]:
    kept = (
        [] if folder is None else [Step("look at what was written", f"qwen36 check {folder / 'quantized'}")]
    )
    return [
        *kept,
        Step("quantize your own", "qwen36 quantize Qwen/Qwen3.6-27B Qwen3.6-27B-W4A16-G128 --dry-run"),
    ]


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


def print_report(screen: Screen, report: DemoReport) -> None:
    """Print whether it went as constructed, then replies, acceptance by position, sizes and times."""
    acceptance = report.acceptance
    good = sum(reply.as_constructed for reply in report.replies)
    positions = ", ".join(
        f"position {i + 1}: {count}/{acceptance.drafts}" for i, count in enumerate(acceptance.per_position)
    )
    verdict = "[bold green]It works[/]" if report.ok else "[bold red]It does not work[/]"
    screen.print(
        f"{verdict}: {good} of {len(report.replies)} replies are as constructed, and vLLM accepted "
        f"{acceptance.rate:.1%} of the drafts.",
        soft_wrap=True,
    )
    if SETTINGS.quiet:
        return
    table = report_table("", "")
    table.add_column("prompt", overflow="fold")
    table.add_column("reply", no_wrap=True)
    table.add_column("as constructed", no_wrap=True)
    for reply in report.replies:
        shown = shorten(reply.text, _REPLY_WIDTH, placeholder=" …") if screen.is_terminal else reply.text
        table.add_row(plain(reply.prompt), plain(shown), "yes" if reply.as_constructed else "[red]no[/]")
    screen.print(table)
    screen.say(
        f"Acceptance {acceptance.rate:.1%} ({acceptance.accepted} of {acceptance.proposed} drafts; {positions}), "
        f"acceptance length {acceptance.length:.2f}"
    )
    times = ", ".join(f"{name} {duration_text(seconds)}" for name, seconds in report.seconds.items())
    screen.say(f"{size_text(report.source_bytes)} → {size_text(report.target_bytes)}; {times}")
