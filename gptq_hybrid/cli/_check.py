"""``qwen36 check`` and ``qwen36 repair``."""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.markup import escape

from gptq_hybrid.checkpoint import Checkpoint, Finding, Severity, check_mtp, check_quantized, repair
from gptq_hybrid.checkpoint.serving import serve_line

FAULTY = 1


def check_command(
    path: Annotated[Path, typer.Argument(metavar="PATH", help="Folder of the checkpoint.")],
    mtp: Annotated[bool, typer.Option("--mtp/--no-mtp", help="Whether it is to serve with MTP.")] = True,
    json_output: Annotated[bool, typer.Option("--json", help="Print JSON and nothing else.")] = False,
) -> None:
    """Say whether a checkpoint will serve, from headers alone. Exit code 1 if not, 2 if unreadable."""
    checkpoint = Checkpoint.open(path)
    findings = check_quantized(checkpoint) + (check_mtp(checkpoint) if mtp else [])
    faulty = any(finding.severity is Severity.ERROR for finding in findings)
    if json_output:
        verdict = "faulty" if faulty else "serves"
        typer.echo(
            json.dumps(
                {"path": str(path), "findings": [asdict(f) for f in findings], "verdict": verdict}, indent=2
            )
        )
    else:
        print_findings(Console(), findings)
        if not faulty:
            Console().print("No errors. Serve it:", highlight=False)
            Console().print(escape(serve_line(path)), highlight=False, soft_wrap=True)
    if faulty:
        raise typer.Exit(FAULTY)


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
        console.print(escape(f"{path}: {sentence}"), highlight=False, soft_wrap=True)
    if not result.done and not result.left:
        console.print("Nothing to repair.")
    print_findings(console, result.left)
    if result.left:
        raise typer.Exit(FAULTY)


def print_findings(console: Console, findings: Iterable[Finding]) -> None:
    """One paragraph a finding: rule, what is wrong, what to do."""
    for finding in findings:
        colour = "red" if finding.severity is Severity.ERROR else "yellow"
        console.print(
            f"[{colour}]{finding.severity}[/] {escape(f'[{finding.rule}] {finding.message}')}",
            highlight=False,
        )
        console.print(f"  → {escape(finding.remedy)}", highlight=False, soft_wrap=True)
