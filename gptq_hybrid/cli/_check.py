"""``qwen36 check``."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import nullcontext
from enum import StrEnum
from typing import Annotated

import typer

from gptq_hybrid.checkpoint import DRAFT_VOCAB_FILE, DraftVocab
from gptq_hybrid.common.envelope import print_json
from gptq_hybrid.common.errors import CheckpointError, HybridError
from gptq_hybrid.common.progress import byte_progress
from gptq_hybrid.common.terminal import SETTINGS, Screen, Step, err, out, plain, print_error, print_next
from gptq_hybrid.doctor import DEADLINE, Report, VllmRelease, check, check_rules
from gptq_hybrid.doctor.place import Place, place_named, this_place
from gptq_hybrid.doctor.serve_line import ServeCommand

from ._annotations import github_lines, sarif_log
from ._findings import print_findings, rules_table
from ._serve import print_memory, serving_steps


class CheckFormat(StrEnum):
    """How findings are printed: for people, as JSON, for code scanning, or as notes on a pull request."""

    TEXT = "text"
    JSON = "json"
    SARIF = "sarif"
    GITHUB = "github"


def check_command(
    paths: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="PATH...",
            help="Folders, hub ids OWNER/NAME[@REVISION], or URLs of folders.",
            show_default=False,
        ),
    ] = None,
    as_json: Annotated[
        bool, typer.Option("--json", help="Print JSON and nothing else; short for --output-format json.")
    ] = False,
    output_format: Annotated[
        CheckFormat,
        typer.Option(help="How findings are printed: github makes annotations in GitHub Actions."),
    ] = CheckFormat.TEXT,
    vllm: Annotated[
        str | None,
        typer.Option(
            metavar="VERSION", help="Release of vLLM to serve it with.  [default: the installed one]"
        ),
    ] = None,
    gpu: Annotated[
        str | None,
        typer.Option(
            metavar="CARD",
            help="Where to serve it: 'RTX 4090', an amount of memory (24GiB), or cpu.  [default: here]",
        ),
    ] = None,
    plugin: Annotated[
        bool | None,
        typer.Option(
            "--plugin/--no-plugin",
            help="Whether vLLM runs with vllm-qwen36-plugin.  [default: as installed; without it for --vllm]",
            show_default=False,
        ),
    ] = None,
    mtp: Annotated[bool, typer.Option("--mtp/--no-mtp", help="Whether to serve it with MTP.")] = True,
    strict: Annotated[bool, typer.Option("--strict", help="Exit with 1 for warnings too.")] = False,
    follow_symlinks: Annotated[
        bool, typer.Option("--follow-symlinks", help="Read files through links that lead out of the folder.")
    ] = False,
    timeout: Annotated[
        float, typer.Option(min=0.1, help="Seconds that one network request may take.")
    ] = 30.0,
    deadline: Annotated[
        float,
        typer.Option(min=0.1, help="Seconds that all network requests may take together; not with --deep."),
    ] = DEADLINE,
    deep: Annotated[
        bool,
        typer.Option(
            "--deep", help="Read every byte, and compare files with the SHA-256 that the hub has of them."
        ),
    ] = False,
    rules: Annotated[bool, typer.Option("--rules", help="List every rule and exit.")] = False,
) -> None:
    """Say whether checkpoints will serve with vLLM and MTP.

    Without --deep only headers, small files and samples of values are read; no GPU is needed.

    Exit code 0: all serve. 1: errors were found. 2: one could not be read.
    """
    shape = CheckFormat.JSON if as_json else output_format
    SETTINGS.as_json = shape is CheckFormat.JSON
    if rules:
        _list_rules()
        return
    if not paths:
        raise HybridError("no checkpoint was named", remedy="Run: qwen36 check FOLDER, or OWNER/NAME")
    place = this_place() if gpu is None else place_named(gpu)
    with byte_progress(err(), "read") if deep else nullcontext() as on_progress:
        reports = [
            check(
                path,
                mtp=mtp,
                vllm=vllm,
                plugin=plugin,
                follow_links=follow_symlinks,
                timeout=timeout,
                deadline=deadline,
                deep=deep,
                on_progress=on_progress,
            )
            for path in paths
        ]
    match shape:
        case CheckFormat.JSON:
            _print_json(reports, place)
        case CheckFormat.SARIF:
            typer.echo(sarif_log(reports, check_rules()))
        case CheckFormat.GITHUB:
            screen = out()
            for report in reports:
                for line in github_lines(report):
                    screen.say(line)
        case _:
            _print(reports, place)
    if code := max(report.exit_code(strict=strict) for report in reports):
        raise typer.Exit(code)


def _list_rules() -> None:
    if not SETTINGS.as_json:
        out().print(rules_table(check_rules()))
        return
    print_json(
        {
            "rules": [
                {
                    "id": rule.id,
                    "scope": rule.scope,
                    "severity": str(rule.severity),
                    "explanation": rule.explanation,
                    "remedy": rule.remedy,
                }
                for rule in check_rules()
            ]
        }
    )


def _print_json(reports: Sequence[Report], place: Place | None) -> None:
    first = reports[0]
    single = len(reports) == 1
    commands = [_serving(report, place) for report in reports]
    serves = [None if command is None else command.line for command in commands]
    print_json(
        {
            "verdict": _worst(reports),
            "checkpoints": [
                {
                    **report.as_json(),
                    "format": report.format,
                    "packed": round(report.packed, 6),
                    "mtp": report.mtp,
                    "serve": serve,
                    "serving": None if command is None else command.as_json(),
                }
                for report, serve, command in zip(reports, serves, commands, strict=True)
            ],
        },
        format=first.format if single else None,
        serve=serves[0] if single else None,
        steps=[step for report in reports for step in next_steps(report, place)],
        vllm=first.vllm,
        plugin=first.plugin,
    )


def _worst(reports: Sequence[Report]) -> str:
    verdicts = {report.verdict for report in reports}
    return next(verdict for verdict in ("unreadable", "faulty", "serves") if verdict in verdicts)


def _serving(report: Report, place: Place | None) -> ServeCommand | None:
    if report.verdict != "serves" or report.checkpoint is None:
        return None
    from gptq_hybrid.plan import serving

    release = None if report.vllm is None else VllmRelease(report.vllm)
    return serving(report.checkpoint, place, mtp=report.mtp, vllm=release, plugin=report.plugin)


def next_steps(report: Report, place: Place | None = None) -> list[Step]:
    """What to do about a checkpoint that was checked: serve it and ask it, or take the findings' own help."""
    command = _serving(report, place)
    return [] if command is None else serving_steps(command)


def _print(reports: Sequence[Report], place: Place | None) -> None:
    screen = out()
    for number, report in enumerate(reports):
        if number and not SETTINGS.quiet:
            screen.say("")
        if report.verdict == "unreadable":
            finding = report.findings[0]
            print_error(finding.message, finding.remedy)
            continue
        if not SETTINGS.quiet:
            _print_verdict(screen, report)
        print_findings(screen, report.path, report.findings)
        if line := _draft_vocab(report):
            screen.say(line)
        if report.verdict == "faulty":
            print_next(Step("do what `help` says, and check it again", f"qwen36 check {report.path}"))
        if (command := _serving(report, place)) is not None:
            print_memory(screen, command, report.path, report.checkpoint, place)
        print_next(*next_steps(report, place))
    if len(reports) > 1 and not SETTINGS.quiet:
        counts = [sum(r.verdict == v for r in reports) for v in ("serves", "faulty", "unreadable")]
        serve, faulty, unreadable = counts
        screen.say(f"\n{len(reports)} checkpoints: {serve} serve, {faulty} faulty, {unreadable} unreadable.")


def _draft_vocab(report: Report) -> str | None:
    """Describe the list that drafts can be limited to; None where there is nothing to say."""
    checkpoint = report.checkpoint
    if SETTINGS.quiet or not report.mtp or checkpoint is None:
        return None
    vocab = checkpoint.draft_vocab
    if isinstance(vocab, DraftVocab):
        far = " (not compared with the tokenizer, which is on a server)" if checkpoint.files.far else ""
        return f"Draft vocabulary: {vocab.summary}{far}."
    if isinstance(vocab, CheckpointError) or checkpoint.listing is None:
        return None  # a finding says why it cannot be used
    return f"Draft vocabulary: no {DRAFT_VOCAB_FILE}; `qwen36 draft-vocab` makes one."


def _print_verdict(screen: Screen, report: Report) -> None:
    faulty = report.verdict == "faulty"
    style, word = ("bold red", "will not serve") if faulty else ("bold green", "serves")
    against = f"vLLM {report.vllm}" if report.vllm else "no particular vLLM (none is installed; see --vllm)"
    against += " and vllm-qwen36-plugin" if report.plugin else ""
    against += " with MTP" if report.mtp else " without MTP"
    counts = [
        f"{len(findings)} {noun}{'' if len(findings) == 1 else 's'}"
        for findings, noun in ((report.errors, "error"), (report.warnings, "warning"))
        if findings
    ]
    share = f", {report.packed:.0%} of the linears' parameters packed" if report.packed else ""
    screen.print(
        f"{plain(report.path)}: [{style}]{word}[/], checked for {plain(against)}: "
        f"{', '.join(counts) or 'nothing found'} ({plain(report.format or 'unknown format')}{share})",
        soft_wrap=True,
    )
