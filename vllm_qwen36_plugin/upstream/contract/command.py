"""``qwen36 contract``: is what we touch still there, and has it the shape that was seen?"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from gptq_hybrid.common.errors import HybridError
from gptq_hybrid.common.tables import plain

from .listed import touches
from .packages import PACKAGES, Package, find_packages, installed
from .record import Report, Verdict, compared, load_seen

MOVED = 1


def contract(
    targets: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="[TARGET]...",
            help="A wheel, a source archive, a folder, an environment, or one of "
            f"{', '.join(PACKAGES)}. Without one: what is installed.",
        ),
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
    all_names: Annotated[bool, typer.Option("--all", help="List names that are as before too.")] = False,
) -> None:
    """Look for the names of vLLM, gptqmodel, torch and transformers that this project touches.

    Reads the text alone: nothing is imported, and no GPU is needed. Exit code 1: something has moved or is gone.
    """
    found: list[Package] = installed() if not targets else [p for t in targets for p in find_packages(t)]
    if not found:
        raise HybridError(
            f"none of {', '.join(PACKAGES)} is installed", remedy="Give a wheel: pip download --no-deps vllm"
        )
    seen = load_seen()
    reports = [compared(package, touches(), seen) for package in found]
    if as_json:
        typer.echo(json.dumps([report.to_json() for report in reports], indent=1))
    else:
        for report, package in zip(reports, found, strict=True):
            _show(report, package.place, all_names)
    if any(report.broken for report in reports):
        raise typer.Exit(MOVED)


def sentence(report: Report) -> str:
    """The outcome in a line."""
    same, body = len(report.of("as before")), len(report.of("other body"))
    shape, gone = len(report.of("other shape")), len(report.of("gone"))
    parts = [f"{same} of {len(report.verdicts)} names as in {report.against or 'no version yet'}"]
    parts += [f"{body} with another body"] * bool(body)
    parts += [f"{shape} with another shape"] * bool(shape)
    parts += [f"{gone} gone"] * bool(gone)
    return f"{report.package} {report.version}: {', '.join(parts)}."


def _show(report: Report, place: Path, all_names: bool) -> None:
    console = Console(highlight=False)
    console.print(plain(f"{sentence(report)} ({place})"), soft_wrap=True)
    for verdict in report.of("gone", "other shape", "other body") + (report.of("as before") * all_names):
        console.print(plain(f"  {verdict.state:<11}  {verdict.touch.name}"), soft_wrap=True)
        for line in _details(verdict):
            console.print(plain(f"{'':15}{line}"), soft_wrap=True)


def _details(verdict: Verdict) -> list[str]:
    if verdict.state in ("as before", "other body"):
        return []
    entry = verdict.touch.entry
    where = f"entry {entry.number}, {entry.title}" if entry.number else "a public interface"
    lines = [f"was: {verdict.before}"] + [f"is:  {verdict.now}"] * (verdict.state == "other shape")
    lines += [f"{where}: {entry.ledger}/upstream/README.md"]
    return lines + [f"at risk: {', '.join(entry.features)}"] * bool(entry.features)
