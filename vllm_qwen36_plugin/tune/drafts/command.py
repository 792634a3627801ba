"""The command ``qwen36 tune drafts``: check the options, measure, recommend, print."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Annotated, cast

import typer

from gptq_hybrid.calibration.prompts import read_prompts
from gptq_hybrid.common.envelope import print_json
from gptq_hybrid.common.errors import HybridError
from gptq_hybrid.common.extras import refuse_missing
from gptq_hybrid.common.numbers import parse_numbers
from gptq_hybrid.common.options import AsJson
from gptq_hybrid.common.outputs import refuse_unwritable
from gptq_hybrid.common.progress import counting_bars
from gptq_hybrid.common.tables import plain
from gptq_hybrid.common.terminal import SETTINGS, Step, err, note, print_next
from gptq_hybrid.common.terminal import out as out_screen
from gptq_hybrid.common.vllm_server import servers_end_on_signal
from gptq_hybrid.doctor.chat import readable_template
from gptq_hybrid.doctor.place import profile_for
from gptq_hybrid.doctor.vllm_releases import drafts_by_batch, installed_vllm

from .choose import Recommendation, recommend
from .grid import (
    BATCHES,
    CONTEXTS,
    COUNTS,
    Context,
    Grid,
    open_checkpoint,
    serve_flags,
    token_limits,
)
from .prompts import require_bytes
from .result import Results
from .run import describe_progress, log_path, measure_grid, probe_machine
from .table import cells_table, meaning, serve_line

_MOST_DRAFTS, _MOST_BATCH = 16, 1024


def tune_drafts(
    model: Annotated[
        str, typer.Argument(metavar="MODEL", help="Folder or hub id of the checkpoint to serve.")
    ],
    prompts: Annotated[
        Path,
        typer.Argument(
            metavar="PROMPTS.jsonl", help="Prompts to send: messages, prompt or text, one a line."
        ),
    ],
    numbers: Annotated[
        str | None,
        typer.Option(metavar="N,...", help="Counts of drafts; 0 is none.  [default: 0,1,2,3,4]"),
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
    repeats: Annotated[int, typer.Option(min=2, max=99, help="Repeats, which show the noise.")] = 3,
    vllm_args: Annotated[
        str | None,
        typer.Option(
            metavar="'FLAG ...'",
            help="For vllm serve, as you will serve.  [default: those qwen36 check prints for this GPU]",
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

    Starts vllm serve with each count of drafts, and sends it the prompts at each batch and context. Recommends the
    count with the shortest time per token. The result file keeps what was measured, and the same command goes on
    from there.

    Exit code 2: bad input, no vLLM, or a server that failed.
    """
    refuse_unwritable("--out", out)
    refuse_unwritable("--plot", plot)
    if plot is not None:
        refuse_missing("matplotlib")
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
    """The arguments of :func:`tune_drafts` that decide what is measured, as typed; None is the default."""

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
    """Measure a workload, keep the figures, recommend a count of drafts.

    Args:
        workload: what to measure.
        out: the file of the results. Cells of an earlier run with the same settings are not measured again.
        plot: the file of the picture; None for one beside ``out`` if matplotlib is installed.
        as_json: print JSON only.

    Raises:
        HybridError: the input is bad, which is found before anything is started; or a server fails.
    """
    grid, environment = make_grid(workload)
    picture = plot or (out.with_suffix(".png") if find_spec("matplotlib") else None)
    results = Results.open(out, grid.settings(environment))
    try:
        with servers_end_on_signal(), _progress(grid, results) as (on_cell, on_wait):
            notes = measure_grid(grid, results, on_cell, on_wait)
    except (KeyboardInterrupt, SystemExit):
        err().say(describe_progress(grid, results))
        raise
    recommendation = recommend(grid, results.cells)
    results.write(recommendation.as_json())
    if picture is not None:
        from .picture import plot as draw

        draw(grid, results.cells, recommendation, environment, picture)
    if grid.on_cpu and grid.temperature and any(grid.counts):
        notes.append(
            "vLLM's CPU build has been seen to accept no draft at a temperature above 0; a GPU may accept some"
        )
    if as_json:
        serve = serve_line(grid, recommendation)
        print_json(
            {
                "path": str(out),
                "plot": None if picture is None else str(picture),
                "notes": notes,
                **results.as_json(recommendation.as_json()),
            },
            serve=serve,
            steps=[Step("serve it", serve)],
        )
        return
    _show(grid, results, recommendation, notes, picture)


def make_grid(workload: Workload) -> tuple[Grid, dict[str, str]]:
    """Check a workload and make its grid; also return device and versions of this machine, for people.

    Raises:
        HybridError: something would keep it from being measured.
    """
    if find_spec("vllm") is None:
        raise HybridError(
            "vLLM is not installed, and its server is to be measured",
            remedy="Where the model is to be served, run: pip install 'vllm-qwen36-plugin[serve]'",
        )
    counts = _numbers("--numbers", workload.numbers, COUNTS, 0, _MOST_DRAFTS)
    batches = _numbers("--batches", workload.batches, BATCHES, 1, _MOST_BATCH)
    contexts = _parse_contexts(workload.context)
    max_tokens = workload.max_tokens
    if workload.requests is not None and workload.requests < max(batches):
        raise HybridError(
            f"--requests {workload.requests} are fewer than the {max(batches)} to be in flight",
            remedy="Give more, or leave it out.",
        )
    if not workload.prompts.is_file():
        # Refused before the checkpoint is opened, which can take a download.
        read_prompts(workload.prompts, chat=True)
    checkpoint = open_checkpoint(workload.model, counts)
    prompts = read_prompts(workload.prompts, chat=readable_template(checkpoint) is not None)
    long_tokens, length = token_limits(checkpoint, workload.long_tokens, max_tokens)
    if "long" in contexts:
        require_bytes(prompts, long_tokens)
    on_gpu, environment = probe_machine()
    arguments, recommended = serve_flags(
        checkpoint,
        workload.vllm_args or "",
        profile=profile_for(environment["device"]) if on_gpu else None,
        batches=batches,
        counts=counts,
        length=length,
        on_cpu=not on_gpu,
    )
    grid = Grid(
        checkpoint=checkpoint,
        prompts=prompts,
        arguments=arguments,
        recommended=recommended,
        counts=counts,
        batches=batches,
        contexts=contexts,
        long_tokens=long_tokens,
        max_tokens=max_tokens,
        temperature=workload.temperature,
        requests=workload.requests,
        repeats=workload.repeats,
        on_cpu=not on_gpu,
        by_batch=drafts_by_batch(installed_vllm()),
    )
    return grid, environment


def _numbers(
    option: str, text: str | None, default: tuple[int, ...], least: int, most: int
) -> tuple[int, ...]:
    if text is None:
        return default
    return parse_numbers(option, text, least, most, example=",".join(map(str, default)))


def _parse_contexts(text: str | None) -> tuple[Context, ...]:
    names = set(CONTEXTS) if text is None else {part.strip() for part in text.split(",")}
    if unknown := names - set(CONTEXTS):
        raise HybridError(
            f"--context {text!r}: {sorted(unknown)[0]!r} is neither short nor long",
            remedy="Give short, long or both with a comma between.",
        )
    return cast(tuple[Context, ...], tuple(name for name in CONTEXTS if name in names))


@contextmanager
def _progress(
    grid: Grid, results: Results
) -> Iterator[tuple[Callable[[str], None], Callable[[float, str], None]]]:
    """Show a bar over all cells, with the cell that is being measured, and what the server does as it starts."""
    with counting_bars(err()) as progress:
        cells = grid.all_cells

        def done() -> int:
            return sum(cell in results.cells for cell in cells)

        if earlier := done():
            note(f"{earlier} cells are taken from {results.path}")
        task = progress.add_task("cells", total=len(cells), completed=earlier)

        def on_cell(what: str) -> None:
            progress.begin(task, what, completed=done())

        yield on_cell, progress.wait
        progress.update(task, description="measured", completed=done())


def _show(
    grid: Grid,
    results: Results,
    recommendation: Recommendation,
    notes: list[str],
    picture: Path | None,
) -> None:
    screen = out_screen()
    for text in meaning(grid, recommendation):
        screen.say(text)
    if not SETTINGS.quiet:
        screen.say("")
        screen.print(cells_table(grid, results.cells, recommendation))
    for text in notes:
        screen.print(f"[yellow]![/] {plain(text)}", soft_wrap=True)
    if SETTINGS.quiet:
        return
    logs = sorted({str(log_path(results.path, count)) for count in grid.counts})
    written = [str(results.path), *([] if picture is None else [str(picture)])]
    screen.say(f"Written: {', '.join(written)}; the servers' logs: {', '.join(logs)}")
    if picture is None:
        screen.say("For a picture: pip install 'vllm-qwen36-plugin[eval]'")
    print_next(Step("serve it", serve_line(grid, recommendation)))
