"""``qwen36 tune --drafts``, from options to what is printed."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import cast

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

from gptq_hybrid.checkpoint import HybridError
from gptq_hybrid.checkpoint.chat import readable_template
from gptq_hybrid.checkpoint.serving import profile_for
from gptq_hybrid.cli._findings import plain

from ._choose import Recommendation, recommend
from ._plan import BATCHES, CONTEXTS, NUMBERS, Context, Plan, longest, read_checkpoint, serve_flags
from ._prompts import read_prompts
from ._result import Results
from ._run import kept, log_of, machine, run, servers_end_on_signal
from ._table import cells_table, meaning

OUT = Path("qwen36-drafts.json")
_MOST_DRAFTS, _MOST_BATCH = 16, 1024
_MAX_TOKENS, _REPEATS = 256, 3


@dataclass(frozen=True)
class Asked:
    """The options as typed; None where not given."""

    drafts: Path
    model: str | None
    numbers: str | None
    batches: str | None
    context: str | None
    long_tokens: int | None
    max_tokens: int | None
    temperature: float | None
    requests: int | None
    repeats: int | None
    vllm_args: str | None


def tune_drafts(asked: Asked, *, out: Path, plot: Path | None, as_json: bool) -> None:
    """Measure, keep, recommend.

    Args:
        out: the results; what is there of an earlier run with the same settings is not measured again.
        plot: the picture; None for one beside ``out`` where matplotlib is installed.

    Raises:
        HybridError: bad input, said before anything is started; or a server that fails.
    """
    plan, environment = planned(asked)
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
        from ._picture import plot as draw

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


def planned(asked: Asked) -> tuple[Plan, dict[str, str]]:
    """What is to be measured, all of it checked, and the machine it is measured on.

    Raises:
        HybridError: anything that would keep it from being measured.
    """
    if asked.model is None:
        raise HybridError(
            "--drafts measures a checkpoint, and none is given",
            remedy=f"Run: qwen36 tune CHECKPOINT --drafts {asked.drafts}",
        )
    if find_spec("vllm") is None:
        raise HybridError(
            "vLLM is not installed, and its server is what is measured",
            remedy="Run: pip install 'vllm-qwen36-plugin[serve]', where the model is to be served.",
        )
    numbers = _numbers("--numbers", asked.numbers, NUMBERS, 0, _MOST_DRAFTS)
    batches = _numbers("--batches", asked.batches, BATCHES, 1, _MOST_BATCH)
    contexts = _contexts(asked.context)
    max_tokens = asked.max_tokens or _MAX_TOKENS
    if asked.requests is not None and asked.requests < max(batches):
        raise HybridError(
            f"--requests {asked.requests} are fewer than the {max(batches)} to be in flight",
            remedy="Give more, or leave it out.",
        )
    if not asked.drafts.is_file():
        read_prompts(asked.drafts, chat=True)
    checkpoint = read_checkpoint(asked.model, numbers)
    prompts = read_prompts(asked.drafts, chat=readable_template(checkpoint) is not None)
    long_tokens, length = longest(checkpoint, asked.long_tokens, max_tokens)
    if "long" in contexts:
        prompts.require_bytes(long_tokens)
    on_gpu, environment = machine()
    arguments, recommended = serve_flags(
        checkpoint,
        asked.vllm_args or "",
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
        temperature=asked.temperature or 0.0,
        requests=asked.requests,
        repeats=asked.repeats or _REPEATS,
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
    with Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
        console=Console(stderr=to_stderr),
    ) as progress:
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
