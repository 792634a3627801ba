"""The stages that a recipe with ``[tune]`` adds: from the packed checkpoint in the state to the target."""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from gptq_hybrid.upstream import RunInterruptedError

from .request import QuantizeRequest


@dataclass
class _Stop:
    asked: bool = False

    def __call__(self) -> bool:
        return self.asked


def tune_into_target(
    request: QuantizeRequest,
    untuned: Path,
    rows: Sequence[Sequence[int]],
    documents: Sequence[Sequence[int]],
    *,
    work: Path | None,
    on_rounded: Callable[[int, int], None] | None,
    on_original: Callable[[int, int], None] | None,
    on_step: Callable[[int, int], None] | None,
    on_stop: Callable[[], None] | None,
) -> dict[str, Any]:
    """Tune the checkpoint in ``untuned`` as the recipe says, and write the target; return the report.

    Args:
        request: of the run; its recipe has ``tune``.
        untuned: folder of the packed checkpoint.
        rows: token ids of texts that were calibrated on; linears are rounded again on them.
        documents: token ids of texts that were not calibrated on.
        work: where states are kept; None keeps none.
        on_rounded: called with (layers done, layers) as linears are rounded again.
        on_original: called with (layers done, layers) as the original runs over the texts.
        on_step: called with (steps done, steps).
        on_stop: called at the first Ctrl-C or SIGTERM; the run goes on to the end of its step.

    Raises:
        RunInterruptedError: it was stopped; with ``work``, the state is kept.
        HybridError: see :func:`gptq_hybrid.tuning.tune`.
    """
    from gptq_hybrid.tuning import AlignRequest, Tuned, TuneRequest, align, tune, write_tuned

    settings = request.recipe.tune
    assert settings is not None
    with _stopping(on_stop) as stop:

        def original(done: int, total: int) -> None:
            if on_original is not None:
                on_original(done, total)
            if stop():
                raise _interrupted(work)

        packed = untuned
        if settings.align_tokens:
            aligned = untuned.with_name("aligned") if work is None else work / "aligned"
            rounded = align(
                AlignRequest(request.source, untuned, aligned, rows, settings.align_tokens, work),
                on_layer=on_rounded,
                stop=stop,
            )
            if rounded is None:
                raise _interrupted(work)
            packed = rounded
        before = untuned if settings.align_tokens else None
        tuned = tune(
            TuneRequest(request.source, packed, documents, settings, work, before=before),
            on_original=original,
            on_step=on_step,
            stop=stop,
        )
        if tuned is None:
            raise _interrupted(work)
        if tuned.brought_nothing:
            packed, tuned = untuned, Tuned({}, {**tuned.report, "rounding_taken": False})
        write_tuned(packed, request.target, tuned, keep_mtp=request.keep_mtp)
    return tuned.report


def _interrupted(work: Path | None) -> RunInterruptedError:
    if work is None:
        return RunInterruptedError("stopped while tuning, without a state", remedy="Begin anew.")
    return RunInterruptedError(
        f"stopped while tuning; the state is in {work}", remedy="Give the same command again, to continue."
    )


@contextmanager
def _stopping(on_stop: Callable[[], None] | None) -> Iterator[_Stop]:
    """Make the first Ctrl-C or SIGTERM a wish to stop; a second one stops at once."""
    stop = _Stop()
    if threading.current_thread() is not threading.main_thread():
        yield stop
        return

    def ask(number: int, frame: object) -> None:
        if stop.asked:
            raise KeyboardInterrupt
        stop.asked = True
        if on_stop is not None:
            on_stop()

    before = {number: signal.signal(number, ask) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield stop
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
