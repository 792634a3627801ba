"""Progress that looks alike in every command: bars on a terminal, lines off one."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from rich.console import Console
from rich.progress import (
    BarColumn,
    DownloadColumn,
    MofNCompleteColumn,
    Progress,
    TaskID,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
    TransferSpeedColumn,
)

from .terminal import SETTINGS
from .units import duration_text, size_text

# Off a terminal every step of a short count gets a line, such as the layers of a model, unless it takes less than a
# second; of a longer count, such as documents, there is a line each ten seconds.
SHORT_COUNT = 128
SECONDS_SHORT, SECONDS_LONG = 1.0, 10.0


class CountingBars(Progress):
    """Bars that count up to a total, with the time spent and the time left.

    Off a terminal they are lines: under nohup, Slurm and Docker somebody reads a file. ``--quiet`` shows neither.
    """

    def __init__(self, console: Console) -> None:
        super().__init__(
            TextColumn("{task.description}", markup=False),
            BarColumn(),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
            TimeRemainingColumn(),
            console=console,
            disable=SETTINGS.quiet or not console.is_terminal,
        )
        self._lines = not SETTINGS.quiet and not console.is_terminal
        # By task: when it began to count, from which step, when its last line was written, and at which step.
        self._begun: dict[TaskID, tuple[float, float]] = {}
        self._written: dict[TaskID, tuple[float, float]] = {}

    def update(self, task_id: TaskID, *args: Any, **changes: Any) -> None:
        """Update a task as rich does; off a terminal write a line when it is due."""
        super().update(task_id, *args, **changes)
        if self._lines:
            self._write(task_id)

    def begin(self, task_id: TaskID, what: str, *, completed: float) -> None:
        """Say what a task does next; off a terminal in a line of its own, with how far the task is."""
        super().update(task_id, description=what, completed=completed)
        if self._lines:
            task = self._task(task_id)
            text = f"{completed:,.0f}/{task.total or 0:,.0f}: {what}"
            self.console.print(text, markup=False, highlight=False, soft_wrap=True)

    def finish(self, task_id: TaskID) -> None:
        """End a count that may have come to less than its total, such as of documents that ran out."""
        done = self._task(task_id).completed
        super().update(task_id, total=done, completed=done)
        if self._lines and done:
            self._write(task_id)

    def wait(self, seconds: float, what: str) -> None:
        """Off a terminal, say that something is still being waited for; on one the bar's clock says so."""
        if self._lines:
            text = f"  {duration_text(seconds)}: {what}"
            self.console.print(text, markup=False, highlight=False, soft_wrap=True)

    def _task(self, task_id: TaskID) -> Any:
        return next(task for task in self.tasks if task.id == task_id)

    def _write(self, task_id: TaskID) -> None:
        task = self._task(task_id)
        if not task.total or not task.visible:
            return
        now, done, total = time.monotonic(), task.completed, task.total
        begun, first = self._begun.setdefault(task_id, (now, done))
        last, step = self._written.get(task_id, (begun, first if done else -1.0))
        if done == step and task_id in self._written:
            return
        pause = SECONDS_SHORT if total <= SHORT_COUNT else SECONDS_LONG
        if done < total and now - last < pause and (done or task_id in self._written):
            return
        self._written[task_id] = now, done
        spent = now - begun
        parts = [f"{task.description}: {done:,.0f}/{total:,.0f}", duration_text(spent)]
        if done >= total:
            parts.append("done")
        elif done > first:
            parts.append(f"about {duration_text(spent / (done - first) * (total - done))} left")
        self.console.print(", ".join(parts), markup=False, highlight=False, soft_wrap=True)


def counting_bars(console: Console) -> CountingBars:
    """Return bars on ``console``, or lines where it is no terminal."""
    return CountingBars(console)


@contextmanager
def byte_progress(console: Console, what: str) -> Iterator[Callable[[int, int], None]]:
    """Yield a function of bytes done and bytes in all: a bar on a terminal, elsewhere a line every ten seconds."""
    if SETTINGS.quiet:
        yield lambda done, total: None
        return
    if console.is_terminal:
        columns = (TextColumn("{task.description}"), BarColumn(), DownloadColumn(binary_units=True))
        with Progress(*columns, TransferSpeedColumn(), TimeRemainingColumn(), console=console) as bars:
            task = bars.add_task(what, total=None)
            yield lambda done, total: bars.update(task, completed=done, total=total)
        return
    begun = last = time.monotonic()

    def line(done: int, total: int) -> None:
        nonlocal last
        now = time.monotonic()
        if now - last >= SECONDS_LONG or (done == total and last == begun):
            last = now
            console.print(f"{what}: {size_text(done)} of {size_text(total)}", highlight=False)

    yield line
