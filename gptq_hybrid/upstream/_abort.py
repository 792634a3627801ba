"""gptqmodel ends the process when a task of its threads fails; this has the reason told before that.

Changes: wraps ``_DeviceWorker._abort_process`` of ``gptqmodel.utils.threadx``.
Why: it prints a traceback to stderr and calls ``os._exit(1)``. While gptqmodel's output goes to a log, the user of
    ``qwen36 quantize`` sees the run end without a word.
Versions: 7.6.0 and 7.7.0; 6.0.3 has no such threads.
Checks: module, class and method exist; otherwise nothing is wrapped.
May go: when gptqmodel raises the error in the thread that waits for the task.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from importlib import import_module
from typing import Any


@contextmanager
def told_before_abort(on_abort: Callable[[BaseException], None] | None) -> Iterator[None]:
    """Call ``on_abort`` with the error of a task before gptqmodel ends the process.

    From the beginning of the block until it ends well. If it ends with an error, that may be the task's: the thread
    that waits for a task has it a moment before the process ends.
    """
    worker = _worker() if on_abort is not None else None
    if worker is None or on_abort is None:
        yield
        return
    abort = worker._abort_process

    def tell_and_abort(self: Any, error: BaseException) -> None:
        try:
            on_abort(error)
        finally:
            abort(self, error)

    worker._abort_process = tell_and_abort
    yield
    worker._abort_process = abort


def _worker() -> Any:
    try:
        worker = getattr(import_module("gptqmodel.utils.threadx"), "_DeviceWorker", None)
    except ImportError:
        return None
    return worker if callable(getattr(worker, "_abort_process", None)) else None
