"""``qwen36 plan``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from gptq_hybrid.common.envelope import print_json
from gptq_hybrid.common.errors import HybridError
from gptq_hybrid.common.extras import refuse_missing
from gptq_hybrid.common.options import AsJson
from gptq_hybrid.common.outputs import refuse_unwritable
from gptq_hybrid.common.terminal import SETTINGS, Step, out, print_next
from gptq_hybrid.common.versions import plugin_installed
from gptq_hybrid.doctor import DEADLINE, Report, VllmRelease, check, finding_json, installed_vllm
from gptq_hybrid.doctor.place import place_named, this_place
from gptq_hybrid.hooks import GpuProfile

from ._findings import print_findings
from ._serve import serving_steps

# From this release on Gated DeltaNet's prefill by FlashInfer exports states; Hopper and Blackwell have it.
_EXPORTS_SINCE = "0.33"
_FLASHINFER = (9, 10, 12)
# Findings of a faulty checkpoint that are shown; `qwen36 check` has all.
_FINDINGS = 3


def plan_command(
    checkpoint: Annotated[
        str | None,
        typer.Argument(
            metavar="CHECKPOINT",
            help="Folder, hub id OWNER/NAME[@REVISION], or URL of a folder. With --explain: the log's, if "
            "left out.",
            show_default=False,
        ),
    ] = None,
    gpu: Annotated[
        str | None,
        typer.Option(
            metavar="CARD", help="'RTX 4090', l40s, an amount of memory (24GiB), or auto: this machine's."
        ),
    ] = None,
    memory: Annotated[
        str | None, typer.Option(metavar="SIZE", help="Memory of a card that is not known by name: 24GiB.")
    ] = None,
    bandwidth: Annotated[
        str | None, typer.Option(metavar="SPEED", help="Bandwidth of that memory, for speeds: 1008GB/s.")
    ] = None,
    context: Annotated[
        int | None,
        typer.Option(min=1, metavar="TOKENS", help="Of one request, prompt and reply; open if left out."),
    ] = None,
    concurrency: Annotated[
        int | None,
        typer.Option(min=1, max=1024, metavar="N", help="Requests of that length at once; open if left out."),
    ] = None,
    drafts: Annotated[
        int | None, typer.Option(min=0, max=8, metavar="N", help="MTP drafts a step; open if left out.")
    ] = None,
    kv: Annotated[
        str | None,
        typer.Option(
            metavar="DTYPE", help="As in --kv-cache-dtype: auto (16 bits), fp8, ...; open if left out."
        ),
    ] = None,
    images: Annotated[
        bool | None,
        typer.Option(
            "--images/--no-images",
            help="Whether to serve images.  [default: if they fit]",
            show_default=False,
        ),
    ] = None,
    tp: Annotated[int, typer.Option(min=1, max=64, metavar="N", help="GPUs that share the model.")] = 1,
    utilization: Annotated[
        float, typer.Option(metavar="SHARE", help="As in --gpu-memory-utilization.")
    ] = 0.95,
    state: Annotated[
        str,
        typer.Option(
            metavar="DTYPE", help="As in --mamba-ssm-cache-dtype: auto, float32, float16, bfloat16."
        ),
    ] = "auto",
    acceptance: Annotated[
        str | None,
        typer.Option(
            metavar="SHARES",
            help="Drafts accepted by position, as `qwen36 doctor` shows them.  [default: 0.8,0.64,0.5,0.4]",
            show_default=False,
        ),
    ] = None,
    vllm: Annotated[
        str | None,
        typer.Option(
            metavar="VERSION", help="Release of vLLM.  [default: the installed one]", show_default=False
        ),
    ] = None,
    explain: Annotated[
        Path | None,
        typer.Option(metavar="LOGFILE", help="Say what the start-up log of a vllm serve means instead."),
    ] = None,
    plot: Annotated[
        Path | None, typer.Option(metavar="FILE.png", help="Draw where the memory goes. Needs matplotlib.")
    ] = None,
    timeout: Annotated[
        float, typer.Option(min=0.1, help="Seconds that one network request may take.")
    ] = 30.0,
    as_json: AsJson = False,
) -> None:
    """Say what fits a GPU, and with which flags.

    Context, concurrency, drafts and KV type, from headers and small files alone; no GPU is needed. Whatever of
    --context, --concurrency, --drafts and --kv is left out is solved for.

    Exit code 0: it fits, or should. 1: it does not, or the checkpoint is faulty. 2: bad input.
    """
    if explain is not None:
        _explain(explain, checkpoint, timeout)
        return
    if checkpoint is None:
        raise HybridError("no checkpoint was named", remedy="Run: qwen36 plan CHECKPOINT --gpu 'RTX 4090'")
    if plot is not None:
        refuse_unwritable("--plot", plot)
        refuse_missing("matplotlib")
    from gptq_hybrid import plan as room

    card = _card(gpu, memory, bandwidth)
    release = installed_vllm() if vllm is None else VllmRelease(vllm)
    question = room.Question(
        card=card,
        context=context,
        concurrency=concurrency,
        drafts=drafts,
        kv=kv,
        images=images,
        tensor_parallel=tp,
        utilization=utilization,
        state=state,
        acceptance=room.ACCEPTANCE if acceptance is None else room.read_acceptance(acceptance),
        vllm=release,
        plugin=plugin_installed(),
        flashinfer=card.compute_capability[0] in _FLASHINFER
        and (release is None or release.version >= VllmRelease(_EXPORTS_SINCE).version),
    )
    report = _checked(checkpoint, mtp=drafts != 0, vllm=release, timeout=timeout)
    opened = report.checkpoint
    assert opened is not None
    found = room.solve(opened, question)
    if plot is not None:
        room.plot_plan(found, plot)
    failed = report.verdict == "faulty" or found.sure in ("may fit", "does not fit")
    steps = [] if failed else serving_steps(found.command)
    if as_json:
        print_json(
            {**room.as_json(found), "findings": [finding_json(f) for f in report.errors]},
            format=report.format,
            serve=found.command.line if steps else None,
            steps=steps,
            vllm=report.vllm,
            plugin=report.plugin,
        )
    else:
        _print(room, found, report, plot)
        print_next(*steps)
    if failed:
        raise typer.Exit(1)


def _card(gpu: str | None, memory: str | None, bandwidth: str | None) -> GpuProfile:
    from dataclasses import replace

    from gptq_hybrid.plan import card_given, read_bandwidth

    if memory is not None:
        if gpu is not None:
            raise HybridError("--gpu and --memory both name a card", remedy="Give one of the two.")
        return card_given(memory, bandwidth)
    if gpu is None:
        raise HybridError(
            "no GPU was named",
            remedy="Give --gpu 'RTX 4090', --gpu auto for this machine's, or --memory 24GiB.",
        )
    if gpu.strip().lower() == "auto":
        found = this_place()
        if found is None or found == "cpu":
            what = (
                "no GPU was found here"
                if found is None
                else "the vLLM that is installed here is built for CPUs"
            )
            raise HybridError(what, remedy="Name the card: --gpu 'RTX 4090', or its memory: --memory 24GiB.")
    else:
        try:
            found = place_named(gpu)
        except HybridError as error:
            remedy = "Give one of these, or what it has: --memory 24GiB --bandwidth 1008GB/s"
            raise HybridError(error.message, remedy=remedy) from error
    if found == "cpu":
        raise HybridError(
            "--gpu cpu: a plan is of a GPU's memory", remedy="Run: qwen36 check CHECKPOINT --gpu cpu"
        )
    return found if bandwidth is None else replace(found, bandwidth=read_bandwidth(bandwidth))


def _checked(checkpoint: str, *, mtp: bool, vllm: VllmRelease | None, timeout: float) -> Report:
    report = check(checkpoint, mtp=mtp, vllm=vllm, timeout=timeout, deadline=DEADLINE)
    if report.checkpoint is None or report.verdict == "unreadable":
        finding = report.findings[0]
        raise HybridError(finding.message, remedy=finding.remedy)
    return report


def _print(room: Any, found: Any, report: Report, plot: Path | None) -> None:
    screen = out()
    if report.verdict == "faulty":
        number = len(report.errors)
        screen.say(
            f"{report.path} will not serve: {number} error{'' if number == 1 else 's'}; mend that first."
        )
        print_findings(screen, report.path, report.errors[:_FINDINGS])
        if number > _FINDINGS:
            screen.say(f"All of them: qwen36 check {report.path}")
        screen.say("")
    screen.say(room.verdict(found))
    for sentence in room.answers(found):
        screen.say(sentence)
    if not SETTINGS.quiet:
        for table in (room.parts_table(found), room.drafts_table(found), room.choices_table(found)):
            screen.say("")
            screen.print(table)
        if found.option.holds:
            screen.say("\nFlags")
            for flag, reason in room.flags(found):
                screen.say(f"  {flag}\n      {reason}")
        if plot is not None:
            screen.say(f"Drawn in {plot}.")


def _explain(path: Path, checkpoint: str | None, timeout: float) -> None:
    from gptq_hybrid import plan as room
    from gptq_hybrid.checkpoint import Checkpoint
    from gptq_hybrid.checkpoint.files import open_files

    log = room.read_log(path)
    name = checkpoint or log.model
    if name is None:
        raise HybridError(
            f"{path} does not name the checkpoint", remedy=f"Run: qwen36 plan CHECKPOINT --explain {path}"
        )
    try:
        opened = Checkpoint.read(open_files(name, timeout=timeout))
    except HybridError as error:
        if checkpoint is not None:
            raise
        raise HybridError(
            f"the log is of {name}, which cannot be read here: {error.message}",
            remedy=f"Run: qwen36 plan CHECKPOINT --explain {path}",
        ) from error
    found = room.explain(log, opened)
    if SETTINGS.as_json:
        print_json(room.explanation_json(found), vllm=log.version)
        return
    screen = out()
    for sentence in room.sentences(found):
        screen.say(sentence)
    if not SETTINGS.quiet:
        screen.say("")
        screen.print(room.gains_table(found))
    print_next(Step("see what another choice would bring", f"qwen36 plan {name} --gpu CARD"))
