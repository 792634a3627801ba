"""``qwen36 eval``."""

from __future__ import annotations

import dataclasses
import json
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console
from rich.progress import TaskID

from gptq_hybrid.calibration import DEFAULT_CALIBRATION
from gptq_hybrid.common.errors import HybridError
from gptq_hybrid.common.options import AsJson
from gptq_hybrid.common.progress import counting_bars
from gptq_hybrid.common.quiet import output_to_log
from gptq_hybrid.common.tables import plain

from ._options import (
    BatchTokens,
    Device,
    Drafts,
    Limit,
    MaxLength,
    Reference,
    Seed,
)
from ._quantize import resolve_source

if TYPE_CHECKING:
    from gptq_hybrid.evaluate import EvalRequest, Evaluation, TaskRequest

_WORK = "work"
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
    out: Annotated[
        Path, typer.Option(metavar="DIR", help="Where evaluation.json and evaluation.png go.")
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
    as_json: AsJson = False,
) -> None:
    """Measure how far quantized checkpoints are from their original, by domain.

    Prints KL divergence, top-1 agreement, perplexity ratio and MTP acceptance, with 95 % intervals over documents.
    Several QUANT are also compared with each other. Layers run one at a time, so a 27B pair fits a 24 GB GPU.
    Accuracy on tasks needs the whole model on the GPU.
    """
    _refuse_unwritable(out)
    from gptq_hybrid.evaluate import (
        EvalRequest,
        TaskRequest,
        check_tasks,
        evaluation_tables,
        plot_evaluation,
        write_evaluation,
    )
    from gptq_hybrid.evaluate import as_json as to_json

    names = tuple(name for name in (part.strip() for part in (tasks or "").split(",")) if name)
    original, others = resolve_source(reference), tuple(resolve_source(q) for q in quantized)
    work = out / _WORK if keep_states else None
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
        data=tuple(data or (() if tasks else (DEFAULT_CALIBRATION,))),
        limit=limit,
        max_length=max_length,
        drafts=drafts,
        seed=seed,
        device=device,
        dtype=dtype,
        work=work,
        batch_tokens=batch_tokens,
    )
    written = [out / "evaluation.json"]
    with _progress_bars(to_stderr=as_json) as (on_progress, on_note):
        if names:
            check_tasks(task_request)
        evaluation = _evaluate(request, on_progress, on_note)
        out.mkdir(parents=True, exist_ok=True)
        if evaluation.checkpoints:
            # Written before the tasks, which may fail after hours of work.
            write_evaluation(written[0], evaluation)
            written.append(out / "evaluation.png")
            plot_evaluation(evaluation, written[1])
        if names:
            evaluation = _add_tasks(evaluation, task_request, on_progress)
            write_evaluation(written[0], evaluation)
    if as_json:
        typer.echo(json.dumps(to_json(evaluation)))
        return
    console = Console()
    console.print(evaluation_tables(evaluation))
    console.print(plain("\n" + " and ".join(map(str, written))), highlight=False, soft_wrap=True)
    if work is not None and (size := _states_size(work)):
        console.print(
            f"{plain(str(work))}: {size / 1e6:,.0f} MB of the reference's hidden states, for its next checkpoint. "
            "Remove the folder if there is none.",
            highlight=False,
            soft_wrap=True,
        )


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


def _refuse_unwritable(out: Path) -> None:
    """Make sure, before hours of work, that results can be written."""
    place = out.absolute()
    while not place.exists():
        place = place.parent
    if not place.is_dir():
        raise HybridError(f"{place} is a file, not a folder", remedy="Give another folder with --out.")
    if not os.access(place, os.W_OK | os.X_OK):
        raise HybridError(f"{place} cannot be written to", remedy="Give another folder with --out.")


def _states_size(folder: Path) -> int:
    return sum(file.stat().st_size for file in folder.glob("states-*"))


@contextmanager
def _progress_bars(*, to_stderr: bool) -> Iterator[tuple[OnProgress, OnNote]]:
    """Show a bar for each thing that is reported; everything else that is printed goes to a log."""
    with (
        output_to_log("eval", stderr=to_stderr) as terminal,
        counting_bars(terminal) as progress,
    ):
        bars: dict[str, TaskID] = {}

        def on_progress(what: str, done: int, total: int) -> None:
            if what not in bars:
                bars[what] = progress.add_task(what, total=total)
            progress.update(bars[what], completed=done, total=total)

        def on_note(line: str) -> None:
            progress.console.print(plain(line), style="yellow", highlight=False, soft_wrap=True)

        yield on_progress, on_note
