"""Measure every cell of a plan against one server, each repeat kept as soon as it is done."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from itertools import groupby
from pathlib import Path

from gptq_hybrid.calibration.prompts import Prompt
from gptq_hybrid.common.errors import HybridError
from gptq_hybrid.live import Counters
from gptq_hybrid.live.endpoint import Endpoint

from .gpu import watching
from .load import Answers, Burst, LoadError, LoadGenerator
from .plan import ALL, RANDOM, SHORT, Cell
from .record import Measured, Receipt, Repeat
from .workload import Contexts, Workload, digest_of, marked, take

OnCell = Callable[[str, int], None]
# The server updates its counters just after it has sent the last token.
_SETTLED_AFTER, _SETTLE_TRIES = 0.2, 25
_WARM_TOKENS = 16
# Entries of the log that two prompts of one cell are apart; no context takes as many.
_APART = 100_000


@dataclass
class Measurement:
    """A receipt in the making.

    Attributes:
        receipt: what is measured so far; each repeat is added.
        path: its file.
        workload: the prompts; None for random tokens.
        endpoint: the server's tokenizer.
        load: sends requests.
        here: whether the server runs on this machine.
        salt: put into the mark of every prompt, so that a server that had them before finds none in its cache.
        rendered: whether prompts go through a chat template.
        on_cell: called with what is measured next, and how many repeats are done.
    """

    receipt: Receipt
    path: Path
    workload: Workload | None
    endpoint: Endpoint
    load: LoadGenerator
    here: bool
    salt: str = ""
    rendered: bool = True
    on_cell: OnCell = lambda what, done: None

    def __post_init__(self) -> None:
        self._contexts = Contexts(self.endpoint.count)
        self._warmed: set[tuple[str, int]] = set()

    def run(self, cells: Iterable[Cell]) -> None:
        """Measure what the receipt lacks of ``cells``, which are in the order of a plan.

        Raises:
            HybridError: the server ended, or refused a request. What was measured is in the file.
        """
        for _, group in groupby(cells, key=lambda cell: replace(cell, cache="cold")):
            cold, *warm = list(group)
            for cell in (cold, *warm):
                if cell not in self.receipt.cells:
                    self.receipt.cells[cell] = Measured(cell, self._digest(cell))
            for number in range(self.receipt.plan.repeats):
                try:
                    self._repeat(cold, warm, number)
                except (LoadError, HybridError) as error:
                    raise self._ended(cold, error) from error
        self.receipt.complete = True

    def done(self) -> int:
        """Count the repeats that are measured."""
        return sum(len(measured.repeats) for measured in self.receipt.cells.values())

    def _repeat(self, cold: Cell, warm: list[Cell], number: int) -> None:
        missing = [cell for cell in (cold, *warm) if len(self.receipt.cells[cell].repeats) <= number]
        if not missing:
            return
        burst = self._burst(cold, number)
        if (cold.context, cold.batch) not in self._warmed:
            self.on_cell(f"warm-up: {cold.name}", self.done())
            self.load.run(self._warm_up(cold))
            self._warmed.add((cold.context, cold.batch))
        if cold in missing:
            self._measure(cold, burst, number)
        elif warm:
            self.load.run(burst)
        for cell in warm:
            if cell in missing:
                self._measure(cell, burst, number)

    def _measure(self, cell: Cell, burst: Burst, number: int) -> None:
        repeats = self.receipt.plan.repeats
        self.on_cell(f"{cell.name}, {number + 1} of {repeats}", self.done())
        before = self.endpoint.counters()
        with watching(self.here) as watch:
            answers: Answers = self.load.run(burst)
        counted = self._settled().since(before)
        self.receipt.cells[cell].repeats.append(Repeat.of(answers, counted, watch.result()))
        self.receipt.made = datetime.now(UTC).isoformat(timespec="seconds")
        self.receipt.write(self.path)

    def _burst(self, cell: Cell, number: int) -> Burst:
        plan = self.receipt.plan
        requests = plan.requests_of(cell)
        if cell.domain == RANDOM:
            # A seed of its own for each repeat and batch, or prompts would come from the prefix cache.
            seed = plan.seed + 1000 * number + cell.batch + int(self.salt or "0", 16)
            return Burst((), plan.max_tokens, cell.batch, plan.random_tokens, requests, seed)
        prompts = tuple(map(self.endpoint.render, self._prompts(cell, number, self.salt)))
        return Burst(
            prompts, plan.max_tokens, cell.batch, temperature=plan.temperature, rendered=self.rendered
        )

    def _warm_up(self, cell: Cell) -> Burst:
        """Other prompts of the same shape: enough for every kernel of it to be compiled and captured."""
        burst = self._burst(cell, self.receipt.plan.repeats)
        count = max(cell.batch, 1)
        return replace(
            burst,
            prompts=burst.prompts[:count],
            count=count if burst.count else 0,
            max_tokens=min(burst.max_tokens, _WARM_TOKENS),
        )

    def _prompts(self, cell: Cell, number: int, salt: str) -> list[Prompt]:
        assert self.workload is not None
        plan = self.receipt.plan
        prompts = take(self.workload.of(None if cell.domain == ALL else cell.domain), plan.requests_of(cell))
        marks = [f"{salt}-{cell.batch}-{number}-{at}" for at in range(len(prompts))]
        if cell.context == SHORT:
            return [marked(prompt, mark) for prompt, mark in zip(prompts, marks, strict=True)]
        tokens = plan.tokens_of(cell.context)
        first = _APART * (1 + number * len(prompts))
        return [
            self._contexts.long(prompt, mark, first + _APART * at, tokens)
            for at, (prompt, mark) in enumerate(zip(prompts, marks, strict=True))
        ]

    def _digest(self, cell: Cell) -> str:
        """SHA-256 of what a cell sends; the salt is left out, as it differs from run to run."""
        plan = self.receipt.plan
        if cell.domain == RANDOM:
            return f"random tokens, {plan.random_tokens}/{plan.max_tokens}, seed {plan.seed}"
        return digest_of(p for number in range(plan.repeats) for p in self._prompts(cell, number, ""))

    def _settled(self) -> Counters:
        now = self.endpoint.counters()
        for _ in range(_SETTLE_TRIES):
            time.sleep(_SETTLED_AFTER)
            before, now = now, self.endpoint.counters()
            if now == before:
                break
        return now

    def _ended(self, cell: Cell, error: HybridError) -> HybridError:
        done = self.done()
        kept = f"{count_of_repeats(done)} kept in {self.path}; the same command goes on from there."
        remedy = "\n".join(filter(None, (error.remedy, kept if done else "Nothing was measured yet.")))
        try:
            self.endpoint.counters()
        except HybridError:
            return HybridError(
                f"the server at {self.endpoint.url} ended while {cell.name} was measured: {error.message}",
                remedy=remedy,
            )
        return HybridError(f"{cell.name}: {error.message}", remedy=remedy)


def count_of_repeats(count: int) -> str:
    """Say a count of repeats with its verb: ``1 repeat is``, ``2 repeats are``."""
    return f"{count} repeat{'s are' if count != 1 else ' is'}"
