"""Whether a run keeps a state, how large and how often, and what it continues from."""

from __future__ import annotations

import threading
from dataclasses import dataclass
from typing import TYPE_CHECKING

from gptq_hybrid.common.memory import free_memory
from gptq_hybrid.upstream import why_not_resumable

from ._manifest import before_calibration
from ._size import StateSize, state_size
from ._state import RunState, state_folder

if TYPE_CHECKING:
    from gptq_hybrid.quantize import QuantizeRequest

_GIB = 1 << 30


@dataclass(frozen=True, slots=True)
class ResumePlan:
    """``size`` is None for a run that keeps no state, and ``reason`` says why; ``done``: layers it need not do."""

    size: StateSize | None
    reason: str = ""
    done: int = 0

    @property
    def disk(self) -> int:
        """Bytes that the state takes beside the target, at most."""
        return self.size.disk if self.size else 0

    def said(self, request: QuantizeRequest, layers: int) -> str:
        """One line for the screen. ``layers``: of the model."""
        if self.size is None:
            return f"a run that is killed starts anew: {self.reason}"
        folder = state_folder(request.target)
        if self.done:
            return f"continuing after layer {self.done} of {layers}, from {folder}"
        often = "after each layer" if self.size.interval == 1 else f"every {self.size.interval} layers"
        return f"state kept {often} in {folder}, at most {_size(self.size.disk)} (estimate)"


def plan_resume(
    request: QuantizeRequest, *, inputs: int, packed: int, dense: int, hidden_on_cpu: bool, beside: int
) -> ResumePlan:
    """What a run does about its state.

    ``inputs``: bytes of a layer's inputs over the calibration; ``packed``: of the quantized modules;
    ``dense``: of other tensors in a state (see :func:`.state_size`); ``hidden_on_cpu``: a run
    on a GPU keeps hidden states in main memory; ``beside``: bytes of it that the run takes without a state.

    Raises:
        HybridError: there is a state, and it is of another run or damaged.
    """
    if not request.resume:
        return ResumePlan(None, "--no-resume")
    reason = why_not_resumable(request.recipe.settings)
    if reason is None and threading.current_thread() is not threading.main_thread():
        reason = "gptqmodel keeps a state on the main thread only"
    size = state_size(inputs, packed, dense, request.state_every)
    state = RunState(state_folder(request.target))
    done = 0
    if reason is None and not request.restart:
        done = state.layers()
        if done:
            state.refuse_other(before_calibration(request, hidden_on_cpu=hidden_on_cpu), partial=True)
    needed = size.memory + beside
    if reason is None and not done and needed > free_memory():
        reason = (
            f"writing a state takes {_size(size.memory)} of main memory beside the run's {_size(beside)}, and "
            f"{_size(free_memory())} are free"
        )
    return ResumePlan(None, reason) if reason is not None else ResumePlan(size, done=done)


def _size(count: int) -> str:
    return f"{count / _GIB:.1f} GiB" if count >= _GIB else f"{count / (1 << 20):.1f} MiB"
