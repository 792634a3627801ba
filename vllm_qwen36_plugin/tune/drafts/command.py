"""``qwen36 tune drafts``, from options to what is printed."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Annotated, cast

import typer
from rich.console import Console

from gptq_hybrid.common.errors import HybridError
from gptq_hybrid.common.extras import need
from gptq_hybrid.common.options import AsJson
from gptq_hybrid.common.outputs import refuse_unwritable
from gptq_hybrid.common.progress import counting_bars
from gptq_hybrid.common.tables import plain
from gptq_hybrid.doctor.chat import readable_template
from gptq_hybrid.doctor.serve_line import profile_for

from .choose import Recommendation, recommend
from .grid import (
    BATCHES,
    CONTEXTS,
    NUMBERS,
    Context,
    Plan,
    longest,
    read_checkpoint,
    serve_flags,
)
from .prompts import read_prompts
from .result import Results
from .run import kept, log_of, machine, run, servers_end_on_signal
from .table import cells_table, meaning

_MOST_DRAFTS, _MOST_BATCH = 16, 1024


def tune_drafts(
    model: Annotated[
        str, typer.Argument(metavar="MODEL", help="Folder or hub id of the checkpoint to serve.")
    ],
    prompts: Annotated[
        Path,
        typer.Argument(metavar="PROMPTS.jsonl", help="What to ask: messages, prompt or text, one a line."),
    ],
    numbers: Annotated[
        str | None,
        typer.Option(metavar="N,...", help="Numbers of drafts; 0 is none.  [default: 0,1,2,3,4]"),
    ] = None,
    batches: Annotated[
        str | None, typer.Option(metavar="N,...", help="Requests in flight.  [default: 1,4,16]")
    ] = None,
    context: Annotated[
        str | None,
        typer.Option(
            metavar="NAME,...",
            help="short: prompts as they are; long: other prompts' text ahead of each.  [default: short,long]",
        ),
    ] = None,
    long_tokens: Annotated[
        int | None,
        typer.Option(
            min=16,
            help="Tokens of a prompt in a long context.  [default: 8192, or what the model takes]",
            show_default=False,
        ),
    ] = None,
    max_tokens: Annotated[int, typer.Option(min=2, help="Most tokens of an answer.")] = 256,
    temperature: Annotated[float, typer.Option(min=0.0, help="Of sampling; 0 is greedy.")] = 0.0,
    requests: Annotated[
        int | None,
        typer.Option(min=1, help="Requests of a repeat.  [default: twice the batch, at least 8]"),
    ] = None,
    repeats: Annotated[int, typer.Option(min=2, max=99, help="Repeats, which tell noise.")] = 3,
    vllm_args: Annotated[
        str | None,
        typer.Option(
            metavar="'FLAG ...'",
            help="For vllm serve, as you will serve.  [default: what qwen36 check prints for this GPU]",
        ),
    ] = None,
    out: Annotated[
        Path, typer.Option(metavar="FILE.json", help="Where the result goes; a later run goes on from it.")
    ] = Path("qwen36-drafts.json"),
    plot: Annotated[
        Path | None,
        typer.Option(metavar="PLOT.png", help="Draw the result there.  [default: beside --out]"),
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Find how many MTP drafts serve your prompts fastest.

    Starts vllm serve with each number of drafts, and asks it the prompts at each batch and context. Recommends the
    number with the shortest time per token. The result file keeps what was measured, and the same command goes on
    from there.

    Exit code 2: bad input, no vLLM, or a server that failed.
    """
    refuse_unwritable("--out", out)
    refuse_unwritable("--plot", plot)
    if plot is not None:
        need("matplotlib")
    workload = Workload(
        model,
        prompts,
        numbers,
        batches,
        context,
        long_tokens,
        max_tokens,
        temperature,
        requests,
        repeats,
        vllm_args,
    )
    measure_drafts(workload, out=out, plot=plot, as_json=as_json)


@dataclass(frozen=True)
class Workload:
    """The arguments of :func:`tune_drafts` that decide what is measured; None where left to the default."""

    model: str
    prompts: Path
    numbers: str | None
    batches: str | None
    context: str | None
    long_tokens: int | None
    max_tokens: int
    temperature: float
    requests: int | None
    repeats: int
    vllm_args: str | None


def measure_drafts(workload: Workload, *, out: Path, plot: Path | None, as_json: bool) -> None:
    """Measure, keep, recommend.

    Args:
        out: the results; what is there of an earlier run with the same settings is not measured again.
        plot: the picture; None for one beside ``out`` where matplotlib is installed.

    Raises:
        HybridError: bad input, said before anything is started; or a server that fails.
    """
    plan, environment = planned(workload)
    picture = plot or (out.with_suffix(".png") if find_spec("matplotlib") else None)
    out.parent.mkdir(parents=True, exist_ok=True)
    results = Results.at(out, plan.settings(environment))
    try:
        with servers_end_on_signal(), _progress(plan, results, to_stderr=as_json) as on_cell:
            notes = run(plan, results, on_cell)
    except (KeyboardInterrupt, SystemExit):
        Console(stderr=True).print(plain(kept(plan, results)), highlight=False, soft_wrap=True)
        raise
    found = recommend(plan, results.cells)
    results.write(found.as_json())
    if picture is not None:
        from .picture import plot as draw

        draw(plan, results.cells, found, environment, picture)
    if plan.on_cpu and plan.temperature and any(plan.numbers):
        notes.append(
            "vLLM's CPU build has been seen to accept no draft at a temperature above 0: on a GPU this can differ"
        )
    if as_json:
        typer.echo(
            json.dumps(
                {
                    "path": str(out),
                    "plot": None if picture is None else str(picture),
                    "notes": notes,
                    **results.as_json(found.as_json()),
                },
                ensure_ascii=False,
            )
        )
        return
    _show(plan, results, found, notes, picture)


def planned(workload: Workload) -> tuple[Plan, dict[str, str]]:
    """What is to be measured, all of it checked, and the machine it is measured on.

    Raises:
        HybridError: anything that would keep it from being measured.
    """
    if find_spec("vllm") is None:
        raise HybridError(
            "vLLM is not installed, and its server is what is measured",
            remedy="Run: pip install 'vllm-qwen36-plugin[serve]', where the model is to be served.",
        )
    numbers = _numbers("--numbers", workload.numbers, NUMBERS, 0, _MOST_DRAFTS)
    batches = _numbers("--batches", workload.batches, BATCHES, 1, _MOST_BATCH)
    contexts = _contexts(workload.context)
    max_tokens = workload.max_tokens
    if workload.requests is not None and workload.requests < max(batches):
        raise HybridError(
            f"--requests {workload.requests} are fewer than the {max(batches)} to be in flight",
            remedy="Give more, or leave it out.",
        )
    if not workload.prompts.is_file():
        read_prompts(workload.prompts, chat=True)
    checkpoint = read_checkpoint(workload.model, numbers)
    prompts = read_prompts(workload.prompts, chat=readable_template(checkpoint) is not None)
    long_tokens, length = longest(checkpoint, workload.long_tokens, max_tokens)
    if "long" in contexts:
        prompts.require_bytes(long_tokens)
    on_gpu, environment = machine()
    arguments, recommended = serve_flags(
        checkpoint,
        workload.vllm_args or "",
        profile=profile_for(environment["device"]) if on_gpu else None,
        batches=batches,
        length=length,
        on_cpu=not on_gpu,
    )
    plan = Plan(
        checkpoint=checkpoint,
        prompts=prompts,
        arguments=arguments,
        recommended=recommended,
        numbers=numbers,
        batches=batches,
        contexts=contexts,
        long_tokens=long_tokens,
        max_tokens=max_tokens,
        temperature=workload.temperature,
        requests=workload.requests,
        repeats=workload.repeats,
        on_cpu=not on_gpu,
    )
    return plan, environment


def _numbers(
    option: str, text: str | None, default: tuple[int, ...], least: int, most: int
) -> tuple[int, ...]:
    """A list of whole numbers, ascending and each once.

    Raises:
        HybridError: it is none, or one is out of range.
    """
    if text is None:
        return default
    try:
        found = sorted({int(part) for part in text.split(",")})
    except ValueError:
        found = []
    if not found or not least <= found[0] <= found[-1] <= most:
        raise HybridError(
            f"{option} {text!r} is no list of whole numbers from {least} to {most:,}",
            remedy=f"Give them with commas between: {option} {','.join(map(str, default))}",
        )
    return tuple(found)


def _contexts(text: str | None) -> tuple[Context, ...]:
    given = set(CONTEXTS) if text is None else {part.strip() for part in text.split(",")}
    if unknown := given - set(CONTEXTS):
        raise HybridError(
            f"--context {text!r}: {sorted(unknown)[0]!r} is neither short nor long",
            remedy="Give short, long or both with a comma between.",
        )
    return cast(tuple[Context, ...], tuple(name for name in CONTEXTS if name in given))


@contextmanager
def _progress(plan: Plan, results: Results, *, to_stderr: bool) -> Iterator[Callable[[str], None]]:
    """A bar over all cells; says what is measured now."""
    with counting_bars(Console(stderr=to_stderr)) as progress:
        every = plan.every

        def done() -> int:
            return sum(cell in results.cells for cell in every)

        if kept := done():
            progress.console.print(f"{kept} cells are taken from {plain(str(results.path))}", highlight=False)
        task = progress.add_task("cells", total=len(every), completed=kept)

        def on_cell(what: str) -> None:
            progress.update(task, description=what, completed=done())

        yield on_cell
        progress.update(task, description="measured", completed=done())


def _show(
    plan: Plan, results: Results, found: Recommendation, notes: list[str], picture: Path | None
) -> None:
    console = Console()
    console.print(cells_table(plan, results.cells, found))
    for note in notes:
        console.print(f"[yellow]![/] {plain(note)}", highlight=False)
    for text in meaning(plan, found):
        console.print(plain(text), highlight=False, soft_wrap=True)
    logs = sorted({str(log_of(results.path, number)) for number in plan.numbers})
    written = [str(results.path), *([] if picture is None else [str(picture)])]
    console.print(
        plain(f"\nWritten: {', '.join(written)}; the servers' logs: {', '.join(logs)}"), highlight=False
    )
    if picture is None:
        console.print("For a picture: pip install 'vllm-qwen36-plugin[eval]'", highlight=False, markup=False)
