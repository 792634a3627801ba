"""Run the measurement: one server per count of drafts, its cells one after another, each kept once it is done."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

from gptq_hybrid.calibration.prompts import Prompt
from gptq_hybrid.common.errors import HybridError
from gptq_hybrid.common.vllm_server import (
    ServerExitedError,
    cpu_environment,
    vllm_server,
)

from .client import Client, Load, RequestError
from .grid import Cell, Grid, count_of_drafts, speculative_flags
from .prompts import Contexts
from .result import CellResult, Repeat, Results, difference

OnCell = Callable[[str], None]
OnWait = Callable[[float, str], None]

# Enough for every shape of the cell to be compiled and captured.
_WARM_TOKENS = 32
# A 27B on a cold GPU host compiles for 200 s.
_START_SECONDS = 1800.0
_PROBE = (
    "import json, torch; from gptq_hybrid.common.machine import environment; "
    "print(json.dumps([torch.cuda.is_available(), environment('cuda' if torch.cuda.is_available() else 'cpu')]))"
)


def probe_machine() -> tuple[bool, dict[str, str]]:
    """Find out whether there is a GPU, and collect device and versions for people.

    In a process of its own: a CUDA context in this one would take memory that the server counts on.

    Raises:
        HybridError: PyTorch cannot be imported.
    """
    ended = subprocess.run([sys.executable, "-c", _PROBE], capture_output=True, text=True, check=False)
    if ended.returncode:
        raise HybridError(
            f"PyTorch does not start: {ended.stderr.strip().splitlines()[-1]}",
            remedy="Run qwen36 tune drafts in the environment in which vLLM is installed.",
        )
    on_gpu, environment = json.loads(ended.stdout.strip().splitlines()[-1])
    return bool(on_gpu), dict(environment)


def log_path(out: Path, drafts: int) -> Path:
    """Name the log of the server with so many drafts; it lies beside the results."""
    return out.with_name(f"{out.stem}.server-{drafts}.log")


def measure_grid(
    grid: Grid, results: Results, on_cell: OnCell = lambda _: None, on_wait: OnWait | None = None
) -> list[str]:
    """Measure every cell of ``grid`` that ``results`` lacks.

    Args:
        grid: what to measure.
        results: gets each cell once it is done.
        on_cell: called with what happens next, before a server starts and before each cell.
        on_wait: called with the seconds so far and the last line of the server's log, while it starts.

    Returns:
        Notes for people.

    Raises:
        HybridError: a server did not start, ended or refused a request. The cells that are done are kept, and the
            error names the server's log.
    """
    notes: dict[str, None] = {}
    for drafts in grid.counts:
        missing = [cell for cell in grid.cells(drafts) if cell not in results.cells]
        if missing:
            _measure_with_server(grid, results, drafts, missing, (on_cell, on_wait), notes)
    return list(notes)


def _measure_with_server(
    grid: Grid,
    results: Results,
    drafts: int,
    missing: list[Cell],
    tell: tuple[OnCell, OnWait | None],
    notes: dict[str, None],
) -> None:
    on_cell, on_wait = tell
    log = log_path(results.path, drafts)
    on_cell(f"{count_of_drafts(drafts)}: vllm serve starts")
    # Variables that the user has set go first.
    needed = cpu_environment() if grid.on_cpu else {}
    environment = {name: value for name, value in needed.items() if name not in os.environ}
    arguments = [*grid.arguments, *speculative_flags(drafts)]
    progress = describe_progress(grid, results)
    try:
        with vllm_server(
            arguments, log=log, environment=environment, timeout=_START_SECONDS, on_wait=on_wait
        ) as server:
            client = Client(server.url, grid.temperature)
            contexts = Contexts(grid.prompts, client, client.max_model_len - grid.max_tokens)
            for cell in missing:
                on_cell(f"{count_of_drafts(drafts)}, batch {cell.batch}, {cell.context} context")
                results.add(measure_cell(grid, cell, client, contexts))
                progress = describe_progress(grid, results)
    except ServerExitedError as error:
        raise HybridError(
            f"with {count_of_drafts(drafts)}, {error.message}", remedy=f"Full log: {log}\n{progress}"
        ) from error
    except RequestError as error:
        raise HybridError(
            f"with {count_of_drafts(drafts)}, {error.message}", remedy=f"The server's log: {log}\n{progress}"
        ) from error
    if contexts.left_out:
        most = contexts.most + grid.max_tokens
        notes[
            f"{contexts.left_out} of {len(grid.prompts.prompts)} prompts are left out: with their answers they may "
            f"have more than {most:,} tokens"
        ] = None


def measure_cell(grid: Grid, cell: Cell, client: Client, contexts: Contexts) -> CellResult:
    """Measure one cell, after a warm-up with its own first prompts.

    Raises:
        HybridError: the server fails, or the prompts do not fit.
    """

    def prompt(number: int) -> Prompt:
        return contexts.short(number) if cell.context == "short" else contexts.long(number, grid.long_tokens)

    requests = grid.requests_per_repeat(cell.batch)
    # All prompts are made before anything is timed: counting tokens is work for the server too.
    runs = [[prompt(repeat * requests + i) for i in range(requests)] for repeat in range(grid.repeats)]
    client.load(runs[0][: cell.batch] or runs[0], cell.batch, min(grid.max_tokens, _WARM_TOKENS))
    before = client.acceptance()
    loads: list[Load] = [client.load(prompts, cell.batch, grid.max_tokens) for prompts in runs]
    acceptance = difference(before, client.acceptance())
    if cell.drafts and not acceptance.drafts:
        raise HybridError(
            f"the server was to draft {cell.drafts} tokens a step, and its counters show no draft",
            remedy="Run: qwen36 check on the checkpoint; --vllm-args must not turn drafts or counters off.",
        )
    return CellResult(cell, tuple(map(Repeat.from_load, loads)), acceptance)


def describe_progress(grid: Grid, results: Results) -> str:
    """Say how many cells are done, and how to go on."""
    done = sum(cell in results.cells for cell in grid.all_cells)
    return f"{done} of {len(grid.all_cells)} cells are kept in {results.path}; the same command goes on from there."
