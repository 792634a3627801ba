"""How large the state of a run is, and how often it is worth writing."""

from __future__ import annotations

from dataclasses import dataclass

# A state is the inputs of one layer, and little more. gptqmodel writes it once and, with two generations kept,
# reads and hashes it, its forerunner and the packed modules four to five times over: at 27B (11 GiB and up to 12)
# about a minute, with 512 × 2,048 tokens at about 50 s a layer (computed, not run). After every layer it would
# double the run; after every eighth it costs an eighth, and a kill four layers on average. Runs of fewer tokens
# write in proportion more often.
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
    """``interval``: layers between two states. ``disk``, ``memory``: bytes at most, in the folder and in memory."""

    interval: int
    disk: int
    memory: int


def state_size(inputs: int, packed: int, dense: int = 0, every: int | None = None) -> StateSize:
    """Of a run whose layers have ``inputs`` bytes of inputs and whose quantized modules take ``packed``.

    ``dense``: bytes of the other tensors that gptqmodel holds loaded, and writes into every state. Packed modules
    lie in the folder twice: as gptqmodel offloads them, and in its store. ``every``: layers between two states,
    where that is asked for.
    """
    interval = every or max(1, min(_MOST, -(-inputs // _BYTES_A_LAYER)))
    state = int(inputs * _POSITIONS) + dense
    return StateSize(interval, _GENERATIONS * state + 2 * packed, _COPIES * state)
