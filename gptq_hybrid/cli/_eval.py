"""``qwen36 eval``."""

from __future__ import annotations

import dataclasses
import json
import shlex
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.progress import TaskID

from gptq_hybrid.calibration import DEFAULT_CALIBRATION, refuse_bad_documents
from gptq_hybrid.checkpoint import Checkpoint
from gptq_hybrid.common.atomic import json_text, keep_previous
from gptq_hybrid.common.envelope import print_json
from gptq_hybrid.common.errors import HybridError
from gptq_hybrid.common.extras import refuse_missing
from gptq_hybrid.common.options import AsJson
from gptq_hybrid.common.outputs import refuse_unwritable_folder
from gptq_hybrid.common.progress import counting_bars
from gptq_hybrid.common.quiet import output_to_log
from gptq_hybrid.common.terminal import SETTINGS, Step, out, print_next
from gptq_hybrid.common.units import size_text

from ._options import (
    BatchTokens,
    Device,
    Drafts,
    Limit,
    MaxLength,
    Reference,
    Seed,
    Wide,
)
from ._quantize import resolve_source

if TYPE_CHECKING:
    from gptq_hybrid.evaluate import EvalRequest, Evaluation, TaskRequest

_WORK = "work"
DTYPES = ("float32", "bfloat16")
_TASKS = "Tasks (lm-eval)"

OnProgress = Callable[[str, int, int], None]
OnNote = Callable[[str], None]


def eval_command(
    reference: Reference,
    quantized: Annotated[
        list[str],
        typer.Argument(
            metavar="QUANT...", help="Checkpoints to compare with the original: folders or hub ids."
        ),
    ],
    data: Annotated[
        list[str] | None,
        typer.Option(
            metavar="SOURCE",
            help="JSONL file, folder of DOMAIN.jsonl files, mix, or one domain of mix:broad, such as code. "
            "Repeatable.  [default: mix:broad, or none with --tasks]",
        ),
    ] = None,
    out_folder: Annotated[
        Path, typer.Option("--out", metavar="DIR", help="Where evaluation.json, .png and .html go.")
    ] = Path("qwen36-eval"),
    limit: Limit = None,
    max_length: MaxLength = 2048,
    drafts: Drafts = 2,
    device: Device = None,
    dtype: Annotated[
        str, typer.Option(help="Arithmetic: float32 adds no rounding noise, bfloat16 is faster.")
    ] = "float32",
    batch_tokens: BatchTokens = None,
    seed: Seed = 0,
    keep_states: Annotated[
        bool,
        typer.Option(
            "--keep-states/--no-keep-states",
            help="Keep hidden states in DIR/work. An interrupted run then continues, and REF runs only once.",
        ),
    ] = True,
    tasks: Annotated[
        str | None,
        typer.Option(
            metavar="TASK,...",
            help="Tasks of lm-eval to run, such as gsm8k, after --data or without it.",
            rich_help_panel=_TASKS,
        ),
    ] = None,
    tasks_limit: Annotated[
        int | None, typer.Option(min=1, help="Most documents of each task.", rich_help_panel=_TASKS)
    ] = None,
    tasks_path: Annotated[
        Path | None,
        typer.Option(metavar="DIR", help="Folder of further tasks (YAML).", rich_help_panel=_TASKS),
    ] = None,
    tasks_backend: Annotated[
        str,
        typer.Option(
            help="hf, vllm, or auto: vLLM if it is installed and there is a GPU.", rich_help_panel=_TASKS
        ),
    ] = "auto",
    tasks_chat: Annotated[
        bool,
        typer.Option(
            "--tasks-chat/--no-tasks-chat",
            help="Put prompts through the chat template.",
            rich_help_panel=_TASKS,
        ),
    ] = False,
    tasks_args: Annotated[
        str | None,
        typer.Option(
            metavar="KEY=VALUE,...",
            help="For lm-eval's model, such as tensor_parallel_size=2 or batch_size=8.",
            rich_help_panel=_TASKS,
        ),
    ] = None,
    wide: Wide = False,
    as_json: AsJson = False,
) -> None:
    """Measure how far checkpoints are from their original.

    Prints KL divergence, top-1 agreement, perplexity ratio and MTP acceptance by domain.
    Several QUANT are also compared with each other. Layers run one at a time, so a 27B pair fits a 24 GB GPU.
    Accuracy on tasks needs the whole model on the GPU.
    """
    sources = tuple(data or (() if tasks else (DEFAULT_CALIBRATION,)))
    refuse_unwritable_folder("--out", out_folder)
    refuse_missing("torch", "transformers", "scipy", "matplotlib")
    if dtype not in DTYPES:
        raise HybridError(f"dtype {dtype!r} is not known", remedy=f"One of: {', '.join(DTYPES)}.")
    refuse_bad_documents(sources)
    original, others = resolve_source(reference), tuple(resolve_source(q) for q in quantized)
    for folder in (original, *others):
        Checkpoint.open(folder)
    from gptq_hybrid.evaluate import (
        EvalRequest,
        TaskRequest,
        check_tasks,
        evaluation_summary,
        evaluation_tables,
        plot_evaluation,
        write_evaluation,
        write_evaluation_page,
    )
    from gptq_hybrid.evaluate import as_json as to_json

    names = tuple(name for name in (part.strip() for part in (tasks or "").split(",")) if name)
    work = out_folder / _WORK if keep_states else None
    task_request = TaskRequest(
        reference=original,
        quantized=others,
        tasks=names,
        limit=tasks_limit,
        include_path=tasks_path,
        backend=tasks_backend,
        device=device,
        chat=tasks_chat,
        arguments=_parse_arguments(tasks_args),
        work=work,
    )
    request = EvalRequest(
        reference=original,
        quantized=others,
        data=sources,
        limit=limit,
        max_length=max_length,
        drafts=drafts,
        seed=seed,
        device=device,
        dtype=dtype,
        work=work,
        batch_tokens=batch_tokens,
    )
    written = [out_folder / "evaluation.json"]
    kept: Path | None = None
    with _progress_bars() as (on_progress, on_note):
        if names:
            check_tasks(task_request)
        evaluation = _evaluate(request, on_progress, on_note)
        out_folder.mkdir(parents=True, exist_ok=True)
        if evaluation.checkpoints:
            # Written before the tasks, which may fail after hours of work.
            kept = keep_previous(written[0], json_text(to_json(evaluation)))
            write_evaluation(written[0], evaluation)
            written.append(out_folder / "evaluation.png")
            plot_evaluation(evaluation, written[1])
        picture = written[1] if len(written) > 1 else None
        page = out_folder / "evaluation.html"
        if picture is not None:
            write_evaluation_page(evaluation, page, picture=picture)
        if names:
            evaluation = _add_tasks(evaluation, task_request, on_progress)
            write_evaluation(written[0], evaluation)
            write_evaluation_page(evaluation, page, picture=picture)
        written.append(page)
    steps = _next_steps(evaluation, reference, sources)
    if as_json:
        print_json(to_json(evaluation), steps=steps)
        return
    screen = out()
    for line in evaluation_summary(evaluation):
        screen.say(line)
    if not SETTINGS.quiet:
        screen.print(evaluation_tables(evaluation, wide=wide))
        screen.say("\nWritten: " + " and ".join(map(str, written)))
        if kept is not None:
            screen.say(f"The evaluation that was there before is in {kept}.")
        if work is not None and (size := _states_size(work)):
            screen.say(
                f"{work}: {size_text(size)} of the reference's hidden states, for its next checkpoint. Remove the "
                "folder if there is none."
            )
    print_next(*steps)


def _next_steps(evaluation: Evaluation, reference: str, sources: Sequence[str]) -> list[Step]:
    if not evaluation.checkpoints:
        return []
    data = " ".join(f"--data {shlex.quote(source)}" for source in sources)
    return [
        Step("see which modules cost most", f"qwen36 sensitivity {shlex.quote(reference)} {data} --limit 4")
    ]


def _evaluate(request: EvalRequest, on_progress: OnProgress, on_note: OnNote) -> Evaluation:
    from gptq_hybrid.evaluate import Evaluation, checkpoint_name, evaluate

    if not request.data:
        return Evaluation(checkpoint_name(request.reference), ())
    return evaluate(request, on_progress=on_progress, on_note=on_note)


def _add_tasks(evaluation: Evaluation, request: TaskRequest, on_progress: OnProgress) -> Evaluation:
    from gptq_hybrid.common.machine import environment
    from gptq_hybrid.evaluate import evaluate_tasks

    results = evaluate_tasks(request, on_progress=on_progress)
    machine = evaluation.environment or environment(results.settings["device"])
    return dataclasses.replace(evaluation, tasks=results, environment=machine)


def _parse_arguments(text: str | None) -> dict[str, Any]:
    """Parse ``KEY=VALUE,...``; a value that is JSON, such as a number or ``true``, becomes that."""
    arguments: dict[str, Any] = {}
    for part in (text or "").split(","):
        key, equals, value = part.strip().partition("=")
        if not key and not equals:
            continue
        if not key or not equals:
            raise HybridError(f"--tasks-args: {part!r} is not KEY=VALUE", remedy="Such as: batch_size=8")
        try:
            arguments[key] = json.loads(value)
        except ValueError:
            arguments[key] = value
    return arguments


def _states_size(folder: Path) -> int:
    return sum(file.stat().st_size for file in folder.glob("states-*"))


@contextmanager
def _progress_bars() -> Iterator[tuple[OnProgress, OnNote]]:
    """Show a bar for each thing that is reported; everything else that is printed goes to a log."""
    with (
        output_to_log("eval") as terminal,
        counting_bars(terminal) as progress,
    ):
        bars: dict[str, TaskID] = {}

        def on_progress(what: str, done: int, total: int) -> None:
            if what not in bars:
                bars[what] = progress.add_task(what, total=total)
            progress.update(bars[what], completed=done, total=total)

        def on_note(line: str) -> None:
            terminal.say(line, style="yellow")

        yield on_progress, on_note
