"""``qwen36 eval``."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)

from ._quantize import resolve_source
from ._quiet import output_to_log

if TYPE_CHECKING:
    from gptq_hybrid.evaluate import EvalRequest, Evaluation

_WORK = "work"


def eval_command(
    reference: Annotated[
        str, typer.Argument(metavar="REF", help="Folder of the BF16 original, or its hub id.")
    ],
    quantized: Annotated[
        list[str],
        typer.Argument(metavar="QUANT...", help="Checkpoints to hold against it, folders or hub ids."),
    ],
    data: Annotated[
        list[str],
        typer.Option(
            metavar="SOURCE",
            help="JSONL file, folder of DOMAIN.jsonl files, or a calibration source such as mix:broad. Repeatable.",
        ),
    ],
    out: Annotated[
        Path, typer.Option(metavar="DIR", help="Where evaluation.json and evaluation.png go.")
    ] = Path("qwen36-eval"),
    limit: Annotated[int | None, typer.Option(min=1, help="Most documents of each domain.")] = None,
    max_length: Annotated[int, typer.Option(min=16, help="Tokens kept of each document.")] = 2048,
    drafts: Annotated[int, typer.Option(min=0, max=8, help="MTP drafts to look at; 0 for none.")] = 2,
    device: Annotated[
        str | None, typer.Option(help="cuda, cuda:1, cpu.  [default: the GPU if there is one]")
    ] = None,
    dtype: Annotated[
        str, typer.Option(help="Arithmetic: float32 adds no rounding noise, bfloat16 is faster.")
    ] = "float32",
    batch_tokens: Annotated[
        int | None, typer.Option(min=16, help="Tokens run at once.  [default: 8192 on a GPU, 4096 on a CPU]")
    ] = None,
    seed: Annotated[int, typer.Option(help="For drawing documents and for the intervals.")] = 0,
    keep_states: Annotated[
        bool,
        typer.Option(
            "--keep-states/--no-keep-states",
            help="Keep hidden states in DIR/work, so that a run that was cut off goes on and REF runs once.",
        ),
    ] = True,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON and nothing else.")] = False,
) -> None:
    """Say how far quantized checkpoints are from their original, by domain.

    KL divergence, top-1 agreement, perplexity ratio and MTP acceptance, with 95 % intervals over documents; several
    QUANT are also compared with each other. Layers are run one at a time, so that a 27B pair fits a 24 GB GPU.
    """
    from gptq_hybrid.evaluate import EvalRequest, plot, tables, write_evaluation

    request = EvalRequest(
        reference=resolve_source(reference),
        quantized=tuple(resolve_source(q) for q in quantized),
        data=tuple(data),
        limit=limit,
        max_length=max_length,
        drafts=drafts,
        seed=seed,
        device=device,
        dtype=dtype,
        work=out / _WORK if keep_states else None,
        batch_tokens=batch_tokens,
    )
    console = Console(stderr=as_json)
    found = _with_progress(request, console)
    write_evaluation(out / "evaluation.json", found)
    plot(found, out / "evaluation.png")
    if as_json:
        typer.echo(json.dumps(json.loads((out / "evaluation.json").read_text(encoding="utf-8"))))
        return
    console.print(tables(found))
    console.print(f"\n{out}/evaluation.json and {out}/evaluation.png", highlight=False)


def _with_progress(request: EvalRequest, console: Console) -> Evaluation:
    from gptq_hybrid.evaluate import evaluate

    with (
        output_to_log("eval", enabled=True) as terminal,
        Progress(
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
            TimeRemainingColumn(),
            console=terminal,
        ) as progress,
    ):
        tasks: dict[str, object] = {}

        def on_progress(what: str, done: int, total: int) -> None:
            if what not in tasks:
                tasks[what] = progress.add_task(what, total=total)
            progress.update(tasks[what], completed=done, total=total)  # type: ignore[arg-type]

        return evaluate(request, on_progress=on_progress)
