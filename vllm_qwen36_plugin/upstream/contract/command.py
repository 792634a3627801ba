"""``qwen36 contract``: is what we touch still there, and has it the shape that was seen?"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from gptq_hybrid.common.envelope import print_json
from gptq_hybrid.common.errors import HybridError
from gptq_hybrid.common.options import AsJson
from gptq_hybrid.common.terminal import SETTINGS, Step, out, print_next

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
    as_json: AsJson = False,
    all_names: Annotated[bool, typer.Option("--all", help="List names that are as before too.")] = False,
) -> None:
    """Look for what the project touches in a release.

    Of vLLM, gptqmodel, torch or transformers. Reads the text alone: nothing is imported, and no GPU is needed.

    Exit code 0: all is as it was seen. 1: something has moved or is gone. 2: there is no such release.
    """
    SETTINGS.as_json = as_json
    found: list[Package] = installed() if not targets else [p for t in targets for p in find_packages(t)]
    if not found:
        raise HybridError(
            f"none of {', '.join(PACKAGES)} is installed", remedy="Give a wheel: pip download --no-deps vllm"
        )
    seen = load_seen()
    reports = [compared(package, touches(), seen) for package in found]
    if as_json:
        print_json({"packages": [report.to_json() for report in reports]})
    else:
        for report, package in zip(reports, found, strict=True):
            _show(report, package.place, all_names)
    broken = any(report.broken for report in reports)
    if broken and not as_json:
        print_next(
            Step("read what the new release does there, and change what the named ledger entries are about")
        )
    if broken:
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
    screen = out()
    screen.say(f"{sentence(report)} ({place})")
    for verdict in report.of("gone", "other shape", "other body") + (report.of("as before") * all_names):
        screen.say(f"  {verdict.state:<11}  {verdict.touch.name}")
        for line in _details(verdict):
            screen.say(f"{'':15}{line}")


def _details(verdict: Verdict) -> list[str]:
    if verdict.state in ("as before", "other body"):
        return []
    entry = verdict.touch.entry
    where = f"entry {entry.number}, {entry.title}" if entry.number else "a public interface"
    lines = [f"was: {verdict.before}"] + [f"is:  {verdict.now}"] * (verdict.state == "other shape")
    lines += [f"{where}: {entry.ledger}/upstream/README.md"]
    return lines + [f"at risk: {', '.join(entry.features)}"] * bool(entry.features)
