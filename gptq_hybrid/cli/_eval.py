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
from rich.progress import (
    TaskID,
)

from gptq_hybrid.calibration import DEFAULT_CALIBRATION
from gptq_hybrid.common.errors import HybridError
from gptq_hybrid.common.options import AsJson
from gptq_hybrid.common.progress import counting_bars
from gptq_hybrid.common.quiet import output_to_log

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


def eval_command(
    reference: Reference,
    quantized: Annotated[
        list[str],
        typer.Argument(metavar="QUANT...", help="Checkpoints to hold against it, folders or hub ids."),
    ],
    data: Annotated[
        list[str] | None,
        typer.Option(
            metavar="SOURCE",
            help="JSONL file, folder of DOMAIN.jsonl files, mix, or one domain of mix:broad, such as code. "
            "Repeatable.  [default: mix:broad, unless --tasks are given]",
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
            help="Keep hidden states in DIR/work, so that a run that was cut off goes on and REF runs once.",
        ),
    ] = True,
    tasks: Annotated[
        str | None,
        typer.Option(
            metavar="TASK,...",
            help="Tasks that lm-eval knows, such as gsm8k, after or without --data.",
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
            help="hf, vllm, or auto: vLLM where it is installed and there is a GPU.", rich_help_panel=_TASKS
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
    """Say how far quantized checkpoints are from their original, by domain.

    KL divergence, top-1 agreement, perplexity ratio and MTP acceptance, with 95 % intervals over documents; several
    QUANT are also compared with each other. Layers are run one at a time, so that a 27B pair fits a 24 GB GPU.
    Accuracy on tasks needs the whole model on the GPU.
    """
    _refuse_unwritable(out)
    from gptq_hybrid.evaluate import EvalRequest, TaskRequest, check_tasks, plot, tables, write_evaluation

    names = tuple(name for name in (part.strip() for part in (tasks or "").split(",")) if name)
    original, others = resolve_source(reference), tuple(resolve_source(q) for q in quantized)
    work = out / _WORK if keep_states else None
    asked = TaskRequest(
        reference=original,
        quantized=others,
        tasks=names,
        limit=tasks_limit,
        include_path=tasks_path,
        backend=tasks_backend,
        device=device,
        chat=tasks_chat,
        arguments=_arguments(tasks_args),
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
    with _progress(to_stderr=as_json) as on_progress:
        if names:
            check_tasks(asked)
        found = _evaluated(request, on_progress)
        out.mkdir(parents=True, exist_ok=True)
        if found.checkpoints:
            # Tasks may yet fail: what hours have found is written first.
            write_evaluation(written[0], found)
            written.append(out / "evaluation.png")
            plot(found, written[1])
        if names:
            found = _with_tasks(found, asked, on_progress)
            write_evaluation(written[0], found)
    if as_json:
        typer.echo(json.dumps(json.loads(written[0].read_text(encoding="utf-8"))))
        return
    console = Console()
    console.print(tables(found))
    console.print("\n" + " and ".join(map(str, written)), highlight=False, soft_wrap=True)
    if work is not None and (size := _size_of(work)):
        console.print(
            f"{work}: {size / 1e6:,.0f} MB of the reference's hidden states, for its next checkpoint; remove it "
            "when there is none.",
            highlight=False,
            soft_wrap=True,
        )


def _evaluated(request: EvalRequest, on_progress: OnProgress) -> Evaluation:
    from gptq_hybrid.evaluate import Evaluation, evaluate, name_of

    if not request.data:
        return Evaluation(name_of(request.reference), ())
    return evaluate(request, on_progress=on_progress)


def _with_tasks(found: Evaluation, asked: TaskRequest, on_progress: OnProgress) -> Evaluation:
    from gptq_hybrid.common.machine import environment
    from gptq_hybrid.evaluate import evaluate_tasks

    results = evaluate_tasks(asked, on_progress=on_progress)
    machine = found.environment or environment(results.settings["device"])
    return dataclasses.replace(found, tasks=results, environment=machine)


def _arguments(given: str | None) -> dict[str, Any]:
    """``KEY=VALUE,...``; values that are JSON (numbers, true) as such, others as text."""
    found: dict[str, Any] = {}
    for part in (given or "").split(","):
        key, equals, value = part.strip().partition("=")
        if not key and not equals:
            continue
        if not key or not equals:
            raise HybridError(f"--tasks-args: {part!r} is not KEY=VALUE", remedy="Such as: batch_size=8")
        try:
            found[key] = json.loads(value)
        except ValueError:
            found[key] = value
    return found


def _refuse_unwritable(out: Path) -> None:
    """Make sure, before hours of work, that results can be written."""
    place = out.absolute()
    while not place.exists():
        place = place.parent
    if not place.is_dir():
        raise HybridError(f"{place} is a file, not a folder", remedy="Give another folder with --out.")
    if not os.access(place, os.W_OK | os.X_OK):
        raise HybridError(f"{place} cannot be written to", remedy="Give another folder with --out.")


def _size_of(folder: Path) -> int:
    return sum(file.stat().st_size for file in folder.glob("states-*"))


@contextmanager
def _progress(*, to_stderr: bool) -> Iterator[OnProgress]:
    """A bar for each thing that is reported; everything else that is printed goes to a log."""
    with (
        output_to_log("eval", stderr=to_stderr) as terminal,
        counting_bars(terminal) as progress,
    ):
        bars: dict[str, TaskID] = {}

        def on_progress(what: str, done: int, total: int) -> None:
            if what not in bars:
                bars[what] = progress.add_task(what, total=total)
            progress.update(bars[what], completed=done, total=total)

        yield on_progress
