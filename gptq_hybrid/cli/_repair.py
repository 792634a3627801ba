"""``qwen36 repair``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from gptq_hybrid.checkpoint import repair

from ._findings import findings_table, plain

FAULTY = 1


def repair_command(
    path: Annotated[Path, typer.Argument(metavar="PATH", help="Folder of the checkpoint.")],
    mtp_from: Annotated[
        Path | None,
        typer.Option(metavar="DONOR", help="Checkpoint of the same model to take a lost head from."),
    ] = None,
) -> None:
    """Name an unindexed MTP head in the index, or graft a lost one; weights are never rewritten."""
    result = repair(path, mtp_from=mtp_from)
    console = Console()
    for sentence in result.done:
        console.print(plain(f"{path}: {sentence}"), highlight=False, soft_wrap=True)
    if not result.done and not result.left:
        console.print("Nothing to repair.")
    if result.left:
        console.print(findings_table(result.left))
        raise typer.Exit(FAULTY)
