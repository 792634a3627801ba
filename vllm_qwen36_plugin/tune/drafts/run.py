"""The measuring: one server a number of drafts, every cell of it in turn, each kept as soon as it is done."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType

from gptq_hybrid.common.errors import HybridError
from gptq_hybrid.common.vllm_server import (
    Acceptance,
    ServerExitedError,
    cpu_environment,
    kill_servers,
    vllm_server,
)

from .client import Client, Load, RequestError
from .grid import Cell, Plan, speculative
from .prompts import Contexts, Prompt
from .result import Measured, Repeat, Results, difference

OnCell = Callable[[str], None]

# Long enough for every shape that the cell will bring to be compiled and captured.
_WARM_TOKENS = 32
# A 27B on a cold GPU host compiles for 200 s.
_START_SECONDS = 1800.0
_DESCRIBE = (
    "import json, torch; from gptq_hybrid.common.machine import environment; "
    "print(json.dumps([torch.cuda.is_available(), environment('cuda' if torch.cuda.is_available() else 'cpu')]))"
)


def machine() -> tuple[bool, dict[str, str]]:
    """Whether there is a GPU, and device and versions for people.

    Asked in a process of its own: a CUDA context in this one would take memory that the server counts on.

    Raises:
        HybridError: PyTorch cannot be imported.
    """
    ended = subprocess.run([sys.executable, "-c", _DESCRIBE], capture_output=True, text=True, check=False)
    if ended.returncode:
        raise HybridError(
            f"PyTorch does not start: {ended.stderr.strip().splitlines()[-1]}",
            remedy="Run qwen36 tune in the environment that vLLM is installed in.",
        )
    on_gpu, environment = json.loads(ended.stdout.strip().splitlines()[-1])
    return bool(on_gpu), dict(environment)


@contextmanager
def servers_end_on_signal() -> Iterator[None]:
    """On Ctrl-C, SIGTERM or a closed terminal: end every server at once, then leave the block.

    At once, because a second Ctrl-C while a server is asked to end would leave it running.
    """

    def leave(number: int, frame: FrameType | None) -> None:
        kill_servers()
        if number == signal.SIGINT:
            raise KeyboardInterrupt
        raise SystemExit(128 + number)

    signals = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
    before = {number: signal.signal(number, leave) for number in signals}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def log_of(out: Path, drafts: int) -> Path:
    """Where the server of one number of drafts writes its log: beside the results."""
    return out.with_name(f"{out.stem}.server-{drafts}.log")


def run(plan: Plan, results: Results, on_cell: OnCell = lambda _: None) -> list[str]:
    """Measure every cell of ``plan`` that ``results`` lacks.

    Args:
        on_cell: told what goes on: before a server starts and before each cell.

    Returns:
        Notes for people.

    Raises:
        HybridError: a server did not start, ended or refused a request; cells that were done are kept, and the
            error names the server's log.
    """
    notes: dict[str, None] = {}
    for drafts in plan.numbers:
        todo = [cell for cell in plan.cells(drafts) if cell not in results.cells]
        if todo:
            _one_server(plan, results, drafts, todo, on_cell, notes)
    return list(notes)


def _one_server(
    plan: Plan, results: Results, drafts: int, todo: list[Cell], on_cell: OnCell, notes: dict[str, None]
) -> None:
    log = log_of(results.path, drafts)
    on_cell(f"{_drafts(drafts)}: vllm serve starts")
    # What the user has set goes first.
    needed = cpu_environment() if plan.on_cpu else {}
    environment = {name: value for name, value in needed.items() if name not in os.environ}
    arguments = [*plan.arguments, *speculative(drafts)]
    told = kept(plan, results)
    try:
        with vllm_server(arguments, log=log, environment=environment, timeout=_START_SECONDS) as server:
            client = Client(server.url, plan.temperature)
            contexts = Contexts(plan.prompts, client, client.max_model_len - plan.max_tokens)
            for cell in todo:
                on_cell(f"{_drafts(drafts)}, batch {cell.batch}, {cell.context} context")
                results.add(measured(plan, cell, client, contexts))
                told = kept(plan, results)
    except ServerExitedError as error:
        raise HybridError(
            f"with {_drafts(drafts)}, {error.message}", remedy=f"Full log: {log}\n{told}"
        ) from error
    except RequestError as error:
        raise HybridError(
            f"with {_drafts(drafts)}, {error.message}", remedy=f"The server's log: {log}\n{told}"
        ) from error
    if contexts.left_out:
        most = contexts.most + plan.max_tokens
        notes[
            f"{contexts.left_out} of {len(plan.prompts.prompts)} prompts are left out: they and their answers may "
            f"have more than {most:,} tokens"
        ] = None


def measured(plan: Plan, cell: Cell, client: Client, contexts: Contexts) -> Measured:
    """One cell, warmed up with its own first prompts.

    Raises:
        HybridError: the server fails, or the prompts do.
    """

    def prompt(number: int) -> Prompt:
        return contexts.short(number) if cell.context == "short" else contexts.long(number, plan.long_tokens)

    asked = plan.asked(cell.batch)
    # Built before anything is timed: counting tokens is work for the server too.
    runs = [[prompt(repeat * asked + i) for i in range(asked)] for repeat in range(plan.repeats)]
    client.load(runs[0][: cell.batch] or runs[0], cell.batch, min(plan.max_tokens, _WARM_TOKENS))
    before = client.acceptance()
    loads: list[Load] = [client.load(each, cell.batch, plan.max_tokens) for each in runs]
    counted = difference(before, client.acceptance())
    _require_drafts(cell, counted)
    return Measured(cell, tuple(map(Repeat.of, loads)), counted)


def _require_drafts(cell: Cell, counted: Acceptance) -> None:
    if cell.drafts and not counted.drafts:
        raise HybridError(
            f"the server was to draft {cell.drafts} and its counters know of no draft",
            remedy="Run: qwen36 check on the checkpoint; --vllm-args must not turn drafts or counters off.",
        )


def kept(plan: Plan, results: Results) -> str:
    """How far it came, and how it goes on."""
    done = sum(cell in results.cells for cell in plan.every)
    return (
        f"{done} of {len(plan.every)} cells are kept in {results.path}; the same command goes on from there."
    )


def _drafts(number: int) -> str:
    return "no drafts" if not number else f"{number} draft{'s' * (number > 1)}"
