"""``qwen36 check``."""

from __future__ import annotations

import json
from contextlib import nullcontext
from typing import Annotated

import typer
from rich.console import Console

from gptq_hybrid.checkpoint import DRAFT_VOCAB_FILE, Checkpoint, DraftVocab
from gptq_hybrid.common.errors import CheckpointError
from gptq_hybrid.common.progress import byte_progress
from gptq_hybrid.common.tables import plain
from gptq_hybrid.doctor import DEADLINE, Report, check, check_rules
from gptq_hybrid.doctor.serve_line import DRAFTS, must_be_downloaded, serve_line

from ._findings import findings_table, rules_table


def _list_rules(show: bool) -> None:
    if show:
        Console().print(rules_table(check_rules()))
        raise typer.Exit


def check_command(
    path: Annotated[
        str, typer.Argument(metavar="PATH", help="Folder, hub id OWNER/NAME[@REVISION], or URL of a folder.")
    ],
    json_output: Annotated[bool, typer.Option("--json", help="Print JSON and nothing else.")] = False,
    vllm: Annotated[
        str | None,
        typer.Option(
            metavar="VERSION", help="Release of vLLM to serve it with.  [default: the installed one]"
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
    _rules: Annotated[
        bool,
        typer.Option("--rules", callback=_list_rules, is_eager=True, help="List every rule and exit."),
    ] = False,
) -> None:
    """Say whether a checkpoint will serve with vLLM and MTP; without --deep only headers and samples are read.

    Exit code 0: it serves. 1: errors were found. 2: it could not be read.
    """
    with byte_progress(Console(stderr=True), "read") if deep else nullcontext() as on_progress:
        report = check(
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
    if json_output:
        typer.echo(json.dumps(report.as_json(), indent=2))
    else:
        _print(report)
    code = report.exit_code(strict=strict)
    if code:
        raise typer.Exit(code)


def _print(report: Report) -> None:
    if report.verdict == "unreadable":
        console = Console(stderr=True)
        finding = report.findings[0]
        console.print(f"[bold red]Error:[/] {plain(finding.message)}", highlight=False, soft_wrap=True)
        console.print(plain(finding.remedy), highlight=False, soft_wrap=True)
        return
    console = Console()
    if report.findings:
        console.print(findings_table(report.findings))
    if report.mtp and report.checkpoint is not None and (line := _draft_vocab(report.checkpoint)):
        console.print(plain(line), highlight=False, soft_wrap=True)
    console.print(plain(_summary(report)), highlight=False, soft_wrap=True)
    if report.verdict == "serves" and report.checkpoint is not None:
        line = serve_line(report.checkpoint, drafts=DRAFTS if report.mtp else 0)
        console.print(plain(line), highlight=False, soft_wrap=True)


def _draft_vocab(checkpoint: Checkpoint) -> str | None:
    """Describe the list that drafts can be limited to; None where files cannot be listed."""
    vocab = checkpoint.draft_vocab
    if isinstance(vocab, DraftVocab):
        far = " (not compared with the tokenizer, which is on a server)" if checkpoint.files.far else ""
        return f"Draft vocabulary: {vocab.summary}{far}."
    if isinstance(vocab, CheckpointError) or checkpoint.listing is None:
        return None  # a finding says why it cannot be used
    return f"Draft vocabulary: no {DRAFT_VOCAB_FILE}; `qwen36 draft-vocab` makes one."


def _how(report: Report) -> str:
    far = report.checkpoint is not None and must_be_downloaded(report.checkpoint)
    return "Download it, and serve the folder" if far else "Serve it"


def _summary(report: Report) -> str:
    against = f"vLLM {report.vllm}" if report.vllm else "no particular vLLM (none is installed; see --vllm)"
    against += " and vllm-qwen36-plugin" if report.plugin else ""
    counts = [
        f"{len(findings)} {noun}{'' if len(findings) == 1 else 's'}"
        for findings, noun in ((report.errors, "error"), (report.warnings, "warning"))
        if findings
    ]
    share = f" ({report.packed:.0%} of the linears' parameters packed)" if report.packed else ""
    what = f"{report.path}: {report.format or 'unknown format'}{share}, checked for {against}"
    what += " with MTP" if report.mtp else " without MTP"
    if report.verdict == "faulty":
        return f"{what}: {', '.join(counts)}. It will not serve as requested."
    return f"{what}: {', '.join(counts) or 'nothing found'}. {_how(report)}:"
