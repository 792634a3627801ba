"""``qwen36 repair``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeRemainingColumn

from gptq_hybrid.common.tables import plain
from gptq_hybrid.doctor import Severity
from gptq_hybrid.doctor.repair import Repair, repair

from ._findings import findings_table

FAULTY = 1


def repair_command(
    path: Annotated[Path, typer.Argument(metavar="PATH", help="Folder of the checkpoint.")],
    mtp_from: Annotated[
        str | None,
        typer.Option(
            metavar="DONOR",
            help="Checkpoint of the same model to take a lost MTP head from: folder, hub id or URL.",
        ),
    ] = None,
    out: Annotated[
        Path | None,
        typer.Option(metavar="DIR", help="Write a repaired copy to DIR and leave the checkpoint as it is."),
    ] = None,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Say what would be done; write nothing.")
    ] = False,
    split_mtp: Annotated[
        bool, typer.Option("--split-mtp", help="Move the head into mtp.safetensors; needs --out.")
    ] = False,
    merge_mtp: Annotated[
        bool, typer.Option("--merge-mtp", help="Move the head into the last main shard; needs --out.")
    ] = False,
) -> None:
    """Rebuild the index, correct the config about the MTP head, graft a lost head.

    A repair in place replaces only small JSON files (each kept as .bak) and adds mtp.safetensors.

    Exit code 0: no errors are left. 1: errors are left. 2: nothing could be done.
    """
    with Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        DownloadColumn(),
        TimeRemainingColumn(),
        console=Console(stderr=True),
        transient=True,
    ) as bar:
        task = bar.add_task("writing tensors", total=None, visible=False)
        result = repair(
            path,
            mtp_from=mtp_from,
            out=out,
            dry_run=dry_run,
            split_mtp=split_mtp,
            merge_mtp=merge_mtp,
            progress=lambda done, total: bar.update(task, completed=done, total=total, visible=True),
        )
    _print(result, dry_run=dry_run)
    if any(finding.severity is Severity.ERROR for finding in result.left) and not (dry_run and result.done):
        raise typer.Exit(FAULTY)


def _print(result: Repair, *, dry_run: bool) -> None:
    console = Console()
    if not result.done:
        console.print("Nothing to repair." if not result.left else "Nothing here can be repaired.")
    elif dry_run:
        console.print("Nothing was written. It would:")
    else:
        console.print(plain(f"{result.path}:"), highlight=False, soft_wrap=True)
    for sentence in result.done:
        console.print(f"  * {plain(sentence)}", highlight=False, soft_wrap=True)
    if result.backups:
        console.print(plain(f"The replaced files are in {', '.join(result.backups)}."), highlight=False)
    if result.left and not (dry_run and result.done):
        console.print(findings_table(result.left))
