"""``qwen36 receipt``."""

from __future__ import annotations

import shlex
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from gptq_hybrid.common.envelope import print_json
from gptq_hybrid.common.errors import HybridError
from gptq_hybrid.common.numbers import parse_numbers
from gptq_hybrid.common.options import AsJson
from gptq_hybrid.common.outputs import refuse_unwritable_folder
from gptq_hybrid.common.progress import counting_bars
from gptq_hybrid.common.terminal import SETTINGS, Step, err, note, out, print_next, warn
from gptq_hybrid.common.vllm_server import servers_end_on_signal

from ._options import Wide

if TYPE_CHECKING:
    from gptq_hybrid.receipt.record import Receipt
    from gptq_hybrid.receipt.run import Request, Tell

_WHAT, _TWO, _CARD = "What is sent", "Two receipts", "The reference card's table"
_EXIT = {"equal": 0, "different": 1, "undecided": 3}


def receipt_command(
    target: Annotated[
        str | None,
        typer.Argument(
            metavar="URL|CHECKPOINT",
            help="A running vllm serve, or a folder or hub id, for which one is started and ended.",
            show_default=False,
        ),
    ] = None,
    flags: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="-- FLAGS",
            help="For the vllm serve that is started.  [default: those qwen36 check prints for this machine]",
            show_default=False,
        ),
    ] = None,
    out_folder: Annotated[
        Path | None,
        typer.Option(
            "--out",
            metavar="DIR",
            help="Where it goes; the same command goes on from there.  [default: qwen36-receipt]",
            show_default=False,
        ),
    ] = None,
    quick: Annotated[
        bool,
        typer.Option(
            "--quick", help="Two prompts a domain, short context, batches 1 and 4, 32 tokens, 2 repeats."
        ),
    ] = False,
    prompts: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE.jsonl",
            help="Your own prompts, with a `domain` each or none.  [default: 36 in six domains]",
            rich_help_panel=_WHAT,
            show_default=False,
        ),
    ] = None,
    contexts: Annotated[
        str | None,
        typer.Option(
            metavar="short,N,...",
            help="Prompts as they are, and behind other text up to N tokens.  [default: short,4096,16384]",
            rich_help_panel=_WHAT,
            show_default=False,
        ),
    ] = None,
    batches: Annotated[
        str | None,
        typer.Option(
            metavar="N,...",
            help="Requests in flight.  [default: 1,4,16]",
            rich_help_panel=_WHAT,
            show_default=False,
        ),
    ] = None,
    max_tokens: Annotated[
        int | None,
        typer.Option(
            min=2,
            help="Most tokens of an answer.  [default: 256]",
            rich_help_panel=_WHAT,
            show_default=False,
        ),
    ] = None,
    repeats: Annotated[
        int | None,
        typer.Option(
            min=1, max=99, help="Of each cell.  [default: 3]", rich_help_panel=_WHAT, show_default=False
        ),
    ] = None,
    temperature: Annotated[
        float, typer.Option(min=0.0, help="Of sampling; 0 is greedy.", rich_help_panel=_WHAT)
    ] = 0.0,
    random: Annotated[
        str | None,
        typer.Option(
            metavar="PROMPT/ANSWER",
            help="Random tokens instead of prompts, such as 1024/256.",
            rich_help_panel=_WHAT,
        ),
    ] = None,
    evaluation: Annotated[
        Path | None,
        typer.Option("--eval", metavar="FILE", help="Join what qwen36 eval found: its evaluation.json."),
    ] = None,
    benchmark: Annotated[
        str | None,
        typer.Option(
            metavar="OWNER/DATASET",
            help="Write figures of speed into .eval_results too, as of this data set of the hub.",
        ),
    ] = None,
    tokenizer: Annotated[
        str | None,
        typer.Option(
            metavar="FOLDER",
            help="Folder or hub id of the tokenizer.  [default: the checkpoint's]",
            show_default=False,
        ),
    ] = None,
    api_key: Annotated[
        str | None,
        typer.Option(
            envvar="VLLM_API_KEY", help="Key of a running server.", show_default=False, show_envvar=False
        ),
    ] = None,
    verify: Annotated[
        Path | None,
        typer.Option(
            metavar="RECEIPT",
            help="Measure the same again, and say whether it is equal.",
            rich_help_panel=_TWO,
        ),
    ] = None,
    compare: Annotated[
        tuple[Path, Path] | None,
        typer.Option(
            metavar="A B",
            help="Ratios of B over A; measures nothing.",
            rich_help_panel=_TWO,
            show_default=False,
        ),
    ] = None,
    tolerance: Annotated[
        float,
        typer.Option(
            min=0.001, max=1.0, help="Share by which equal figures may differ.", rich_help_panel=_TWO
        ),
    ] = 0.05,
    reference_card: Annotated[
        bool,
        typer.Option(
            "--reference-card",
            help="Disk, KV tokens, random 1024/256 at 1 and 16 requests; stock and with the plugin.",
            rich_help_panel=_CARD,
        ),
    ] = False,
    against: Annotated[
        list[str] | None,
        typer.Option(
            metavar="CHECKPOINT",
            help="Another one beside it, such as the FP8 original.",
            rich_help_panel=_CARD,
        ),
    ] = None,
    acceptance: Annotated[
        str | None,
        typer.Option(
            metavar="RATE,...",
            help="Share of drafts accepted at each position, of which vLLM makes it so.  [default: 0.763,0.623]",
            rich_help_panel=_CARD,
            show_default=False,
        ),
    ] = None,
    wide: Wide = False,
    as_json: AsJson = False,
) -> None:
    """Measure what a checkpoint does, so that others can check it.

    Serves it, and sends prompts of six domains through vllm bench serve, one and several at a time, cold and warm.
    Keeps times, throughput, acceptance by position, versions, flags, GPU, clocks and the checkpoint's digest, and
    says what is fiction. Writes receipt.json, a section for a model card, a picture, and .eval_results for the hub.

    Exit code 0: measured; with --verify, equal. 1: with --verify, not equal. 2: bad input, or a server that ended;
    what was measured is kept. 3: with --verify, intervals are too wide to say.
    """
    if compare is not None:
        if target or verify or reference_card:
            raise HybridError("--compare measures nothing, so it takes two receipts alone")
        _compare(*compare, as_json=as_json)
        return
    if target is None:
        raise HybridError(
            "what is to be measured?",
            remedy="Give the address of a vllm serve, or a checkpoint: qwen36 receipt CHECKPOINT",
        )
    default = "qwen36-verify" if verify else "qwen36-reference" if reference_card else "qwen36-receipt"
    folder = out_folder or Path(default)
    refuse_unwritable_folder("--out", folder)
    from gptq_hybrid.receipt import hub, plan, run
    from gptq_hybrid.receipt.quality import read_quality

    run.require_vllm()
    if benchmark is not None:
        hub.parse_benchmark(benchmark)
    if evaluation is not None:
        # Its checkpoint's name is known later; whether it is an evaluation is known now.
        read_quality(evaluation, Path(target).name)
    if reference_card:
        _reference(target, flags, against, acceptance, folder, repeats, quick=quick, as_json=as_json)
        return
    if against or acceptance:
        raise HybridError("--against and --acceptance go with --reference-card")
    if verify is not None:
        _verify(target, flags, verify, folder, prompts, tokenizer, api_key, tolerance, wide, as_json)
        return
    answer = max_tokens
    if random is not None and prompts is not None:
        raise HybridError("--random sends no prompts, so it does not go with --prompts")
    tokens = 0
    if random is not None:
        tokens, answer = plan.parse_random(random)
    asked = plan.Plan(
        (),
        2 if quick else 0,
        "",
        ("short",)
        if quick and contexts is None
        else plan.parse_contexts(contexts or ",".join(plan.CONTEXTS)),
        (1, 4) if quick and batches is None else parse_numbers("--batches", batches or "1,4,16", 1, 1024),
        answer or (32 if quick else plan.MAX_TOKENS),
        repeats or (2 if quick else plan.REPEATS),
        temperature,
        tokens,
        8 if tokens else 0,
    )
    request = run.Request(
        target, asked, prompts, tuple(flags or ()), {}, folder, api_key=api_key, tokenizer=tokenizer
    )
    receipt = _measured(request)
    if evaluation is not None:
        receipt.quality = read_quality(evaluation, receipt.subject["name"])
    written = _write(receipt, folder, benchmark)
    _show(receipt, folder, written, target, wide=wide, as_json=as_json)


def _measured(request: Request) -> Receipt:
    from gptq_hybrid.receipt.run import make_receipt

    with servers_end_on_signal(), _progress(request) as tell:
        return make_receipt(request, tell)


@contextmanager
def _progress(request: Request) -> Iterator[Tell]:
    from gptq_hybrid.receipt.measure import count_of_repeats
    from gptq_hybrid.receipt.run import Tell

    with counting_bars(err()) as progress:
        task = progress.add_task("the server starts", total=None)

        def total(done: int, of: int) -> None:
            progress.update(task, total=of, completed=done)
            if done:
                note(f"{count_of_repeats(done)} taken from {request.out}")

        def cell(what: str, done: int) -> None:
            progress.begin(task, what, completed=done)

        yield Tell(total, cell, progress.wait, note)


def _write(receipt: Receipt, folder: Path, benchmark: str | None) -> list[Path]:
    from gptq_hybrid.receipt.outputs import write_outputs

    folder.mkdir(parents=True, exist_ok=True)
    return write_outputs(receipt, folder, benchmark)


def _show(
    receipt: Receipt, folder: Path, written: list[Path], target: str, *, wide: bool, as_json: bool
) -> None:
    from gptq_hybrid.receipt.table import cells_table, summary
    from gptq_hybrid.receipt.target import is_url

    card = "CHECKPOINT" if is_url(target) else shlex.quote(target)
    steps = [
        Step("put it on the model card", f"qwen36 card {card} --receipt {shlex.quote(str(folder))}"),
        Step(
            "have it checked, on this machine or another",
            f"qwen36 receipt {shlex.quote(target)} --verify {shlex.quote(str(folder))}",
        ),
    ]
    for warning in receipt.warnings:
        warn(f"[{warning['rule']}] {warning['message']}")
    if as_json:
        print_json(
            {"path": str(written[0]), "written": list(map(str, written)), **receipt.as_json()},
            steps=steps,
            vllm=receipt.server["vllm"],
            plugin=receipt.server["plugin"] is not None,
        )
        return
    screen = out()
    for line in summary(receipt):
        screen.say(line)
    if not SETTINGS.quiet:
        screen.say("")
        screen.print(cells_table(receipt, wide=wide))
        screen.say(f"Written: {', '.join(map(str, written))}")
    print_next(*steps)


def _verify(
    target: str,
    flags: list[str] | None,
    other: Path,
    folder: Path,
    prompts: Path | None,
    tokenizer: str | None,
    api_key: str | None,
    tolerance: float,
    wide: bool,
    as_json: bool,
) -> None:
    from gptq_hybrid.receipt import run
    from gptq_hybrid.receipt.compare import compare_receipts
    from gptq_hybrid.receipt.record import read_receipt
    from gptq_hybrid.receipt.table import ratios_table, verdicts
    from gptq_hybrid.receipt.target import is_url

    first = read_receipt(other)
    if not first.complete:
        raise HybridError(f"{other} is not complete", remedy="Give its command again, and it goes on.")
    same = first.server["arguments"]
    if not is_url(target) and flags is None and same is None:
        note("The other server was not started by this command, so its flags are not known.")
    request = run.Request(
        target,
        first.plan,
        prompts,
        # Served as the other was, unless the user says otherwise.
        tuple(flags or (same or [""])[1:]) if not is_url(target) else (),
        {} if is_url(target) else dict(first.server["environment"]),
        folder,
        api_key=api_key,
        tokenizer=tokenizer,
        expected=None if first.plan.random_tokens else first.plan.workload,
    )
    second = _measured(request)
    written = _write(second, folder, None)
    comparison = compare_receipts(first, second, fiction=True)
    overall, lines = verdicts(comparison, tolerance)
    for warning in second.warnings:
        warn(f"[{warning['rule']}] {warning['message']}")
    if as_json:
        print_json(
            {
                "verdict": overall,
                "tolerance": tolerance,
                **comparison.as_json(),
                "path": str(written[0]),
                "with": str(other),
            },
            vllm=second.server["vllm"],
            plugin=second.server["plugin"] is not None,
        )
    else:
        screen = out()
        for line in lines:
            screen.say(line)
        if not SETTINGS.quiet:
            screen.say("")
            screen.print(ratios_table(comparison, (str(other), "this run"), tolerance))
            _print_differs(comparison.differs, comparison.left_out)
            screen.say(f"Written: {', '.join(map(str, written))}")
        again = f"qwen36 receipt {shlex.quote(target)} --verify {shlex.quote(str(other))}"
        print_next(
            {
                "equal": Step("put it on the model card", f"qwen36 card CHECKPOINT --receipt {other}"),
                "different": Step("see all figures of both", f"qwen36 receipt --compare {other} {folder}"),
                "undecided": Step("measure more repeats in both", f"{again} --out ANOTHER"),
            }[overall]
        )
    if _EXIT[overall]:
        raise typer.Exit(_EXIT[overall])


def _compare(first: Path, second: Path, *, as_json: bool) -> None:
    from gptq_hybrid.receipt.compare import compare_receipts
    from gptq_hybrid.receipt.record import read_receipt
    from gptq_hybrid.receipt.table import ratios_table

    comparison = compare_receipts(read_receipt(first), read_receipt(second))
    if as_json:
        print_json({"first": str(first), "second": str(second), **comparison.as_json()})
        return
    screen = out()
    differs = len(comparison.differs)
    screen.say(
        f"{second} over {first}: "
        + (
            "nothing that decides a figure differs."
            if not differs
            else f"{comparison.differs[0]}."
            if differs == 1
            else f"{differs} things differ, so no ratio is due to one of them alone."
        )
    )
    screen.print(ratios_table(comparison, (str(first), str(second))))
    _print_differs(comparison.differs if differs > 1 else (), comparison.left_out)


def _print_differs(differs: tuple[str, ...], left_out: tuple[str, ...]) -> None:
    if SETTINGS.quiet:
        return
    for text in differs:
        out().say(f"differs: {text}")
    if left_out:
        out().say(f"in one alone: {'; '.join(left_out)}")


def _reference(
    target: str,
    flags: list[str] | None,
    against: list[str] | None,
    acceptance: str | None,
    folder: Path,
    repeats: int | None,
    *,
    quick: bool,
    as_json: bool,
) -> None:
    from gptq_hybrid.receipt import reference
    from gptq_hybrid.receipt.target import is_url

    for each in (target, *(against or ())):
        if is_url(each):
            raise HybridError(
                f"{each} is a server: its disk and memory cannot be measured from here",
                remedy="Give checkpoints; a server is started for each.",
            )
    request = reference.ReferenceRequest(
        (target, *(against or ())),
        tuple(flags or ()),
        folder,
        rates=reference.parse_rates(acceptance) if acceptance else reference.RATES,
        repeats=repeats or 3,
        tiny=quick,
    )
    card = reference.make_card(request, _measured)
    path = card.write(folder)
    for text in card.warnings:
        warn(text)
    if as_json:
        print_json({"path": str(path), **card.as_json()})
        return
    screen = out()
    screen.say(card.sentence())
    screen.print(card.table())
    if not SETTINGS.quiet:
        screen.say(reference.NOT_COMPARABLE)
        screen.say(f"Written: {path}, {path.with_suffix('.md')}, and a receipt for each column")
