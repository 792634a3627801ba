"""Decide whether a run keeps a state, how large and how often, and what it continues from."""

from __future__ import annotations

import threading
from dataclasses import dataclass

from gptq_hybrid.common.memory import free_memory
from gptq_hybrid.common.units import size_text
from gptq_hybrid.quantize.request import QuantizeRequest
from gptq_hybrid.upstream import why_not_resumable

from .folder import RunState, state_folder
from .manifest import request_items

# A state is the inputs of one layer, and little more. gptqmodel writes it once. With two generations kept, it
# reads and hashes it, its forerunner and the packed modules four to five times over: at 27B (11 GiB and up to
# 12) about a minute, with 512 × 2,048 tokens at about 50 s a layer (computed, not run). After every layer it
# would double the run; after every eighth it costs an eighth, and a kill costs four layers on average. Runs of
# fewer tokens write more often, in proportion.
_BYTES_A_LAYER = 5 << 28
_MOST = 8
# Two generations, and a third before the oldest of them goes.
_GENERATIONS = 3
# gptqmodel copies all tensors of a state, and serialises the copies into one string of bytes.
_COPIES = 2
# Cosines, sines and positions of each token lie beside its hidden states: 3 % at 27B, hidden size 5,120.
_POSITIONS = 1.05


@dataclass(frozen=True, slots=True)
class StateSize:
    """How large states are, and how often one is written.

    Attributes:
        interval: layers between two states.
        disk: bytes in the folder, at most.
        memory: bytes of main memory while a state is written, at most.
    """

    interval: int
    disk: int
    memory: int


def state_size(inputs: int, packed: int, dense: int = 0, every: int | None = None) -> StateSize:
    """Estimate the size of a run's states.

    Packed modules lie in the folder twice: as gptqmodel offloads them, and in its store.

    Args:
        inputs: bytes of a layer's inputs over the calibration.
        packed: bytes of the quantized modules.
        dense: bytes of the other tensors that gptqmodel holds loaded, and writes into every state.
        every: layers between two states; by their size if None.
    """
    interval = every or max(1, min(_MOST, -(-inputs // _BYTES_A_LAYER)))
    state = int(inputs * _POSITIONS) + dense
    return StateSize(interval, _GENERATIONS * state + 2 * packed, _COPIES * state)


@dataclass(frozen=True, slots=True)
class StateDecision:
    """What a run does about its state.

    Attributes:
        size: None for a run that keeps no state.
        reason: why it keeps none.
        done: finished layers that it continues after.
        tuning: all layers are quantized, and it continues with tuning.
    """

    size: StateSize | None
    reason: str = ""
    done: int = 0
    tuning: bool = False

    @property
    def disk(self) -> int:
        """Bytes that the state takes beside the target, at most."""
        return self.size.disk if self.size else 0

    def describe(self, request: QuantizeRequest, layers: int) -> str:
        """Say it in one line for the screen; ``layers`` is how many the model has."""
        if self.size is None:
            return f"a run that is killed starts anew: {self.reason}"
        folder = state_folder(request.target)
        if self.tuning:
            return f"continuing with tuning, from {folder}"
        if self.done:
            return f"continuing after layer {self.done} of {layers}, from {folder}"
        often = "after each layer" if self.size.interval == 1 else f"every {self.size.interval} layers"
        return f"state kept {often} in {folder}, at most {size_text(self.size.disk)} (estimate)"


def decide_state(
    request: QuantizeRequest, *, inputs: int, packed: int, dense: int, hidden_on_cpu: bool, run_memory: int
) -> StateDecision:
    """Decide what a run does about its state.

    Args:
        request: of the run.
        inputs: bytes of a layer's inputs over the calibration.
        packed: bytes of the quantized modules.
        dense: bytes of the other tensors in a state.
        hidden_on_cpu: hidden states stay in main memory though there is a GPU.
        run_memory: bytes of main memory that the run takes without a state.

    Raises:
        HybridError: there is a state, and it is of another run or damaged.
    """
    if not request.resume:
        return StateDecision(None, "--no-resume")
    reason = why_not_resumable(request.recipe.settings)
    if reason is None and threading.current_thread() is not threading.main_thread():
        reason = "gptqmodel keeps a state on the main thread only"
    size = state_size(inputs, packed, dense, request.state_every)
    state = RunState(state_folder(request.target))
    done, tuning = 0, False
    if reason is None and not request.restart:
        done, tuning = state.layers(), state.untuned.is_dir()
        if done or tuning:
            state.refuse_other(request_items(request, hidden_on_cpu=hidden_on_cpu), partial=True)
    if reason is None and not done and not tuning and size.memory + run_memory > free_memory():
        reason = (
            f"writing a state takes {size_text(size.memory)} of main memory beside the run's "
            f"{size_text(run_memory)}, and {size_text(free_memory())} are free"
        )
    return (
        StateDecision(None, reason) if reason is not None else StateDecision(size, done=done, tuning=tuning)
    )
