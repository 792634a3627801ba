"""``qwen36 repair``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer
from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeRemainingColumn

from gptq_hybrid.common.envelope import print_json
from gptq_hybrid.common.options import AsJson
from gptq_hybrid.common.terminal import SETTINGS, Step, err, out, print_next
from gptq_hybrid.doctor import Severity, finding_json
from gptq_hybrid.doctor.repair import Repair, repair

from ._findings import print_findings

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
    out_folder: Annotated[
        Path | None,
        typer.Option(
            "--out", metavar="DIR", help="Write a repaired copy to DIR and leave the checkpoint as it is."
        ),
    ] = None,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Say what would be done, and what stays broken; write nothing.")
    ] = False,
    split_mtp: Annotated[
        bool, typer.Option("--split-mtp", help="Move the head into mtp.safetensors; needs --out.")
    ] = False,
    merge_mtp: Annotated[
        bool, typer.Option("--merge-mtp", help="Move the head into the last main shard; needs --out.")
    ] = False,
    as_json: AsJson = False,
) -> None:
    """Rebuild the index, correct the config, graft a lost head.

    A repair in place replaces only small JSON files (each kept as .bak) and adds mtp.safetensors.

    Exit code 0: no errors are left. 1: errors are left. 2: nothing could be done.
    """
    with Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        DownloadColumn(),
        TimeRemainingColumn(),
        console=err(),
        transient=True,
        disable=SETTINGS.quiet,
    ) as bar:
        task = bar.add_task("writing tensors", total=None, visible=False)
        result = repair(
            path,
            mtp_from=mtp_from,
            out=out_folder,
            dry_run=dry_run,
            split_mtp=split_mtp,
            merge_mtp=merge_mtp,
            progress=lambda done, total: bar.update(task, completed=done, total=total, visible=True),
        )
    if as_json:
        print_json(_as_json(result, dry_run=dry_run), steps=_next_steps(result, dry_run=dry_run))
    else:
        _print(result, dry_run=dry_run)
    if any(finding.severity is Severity.ERROR for finding in result.left):
        raise typer.Exit(FAULTY)


def _as_json(result: Repair, *, dry_run: bool) -> dict[str, Any]:
    return {
        "path": str(result.path),
        "dry_run": dry_run,
        "done": list(result.done),
        "backups": list(result.backups),
        "left": [finding_json(finding) for finding in result.left],
    }


def _next_steps(result: Repair, *, dry_run: bool) -> list[Step]:
    if dry_run and result.done:
        return [Step("repair it with the same command, without --dry-run")]
    if result.left and any(finding.severity is Severity.ERROR for finding in result.left):
        return [Step("do what `help` says, and check it again", f"qwen36 check {result.path}")]
    return [Step("make sure that it serves", f"qwen36 check {result.path}")]


def _print(result: Repair, *, dry_run: bool) -> None:
    screen = out()
    if not result.done:
        screen.say("Nothing to repair." if not result.left else "Nothing here can be repaired.")
    elif dry_run:
        screen.say("Nothing was written. It would:")
    else:
        screen.say(f"{result.path}:")
    for sentence in result.done:
        screen.say(f"  * {sentence}")
    if result.backups:
        screen.say(f"The replaced files are in {', '.join(result.backups)}.")
    if result.left:
        if dry_run and result.done:
            screen.say("It would stay broken in this:")
        print_findings(screen, str(result.path), result.left)
    print_next(*_next_steps(result, dry_run=dry_run))
