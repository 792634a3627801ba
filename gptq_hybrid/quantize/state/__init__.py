"""The state of a quantization, kept beside its target so that a killed run goes on where it was.

``DST.partial`` is the folder. In it ``run.json`` holds the items that decide the run (:mod:`.manifest`),
``lock`` belongs to the process at work, and ``gptqmodel`` is gptqmodel's own store (``gptq_hybrid.upstream``),
which publishes a state by renaming one file. The folder goes when the target is there.
"""

from .decision import StateDecision, StateSize, decide_state, state_size
from .folder import RunState, folder_bytes, open_state, state_folder, untuned_folder
from .manifest import calibration_items, differences, request_items

__all__ = [
    "RunState",
    "StateDecision",
    "StateSize",
    "calibration_items",
    "decide_state",
    "differences",
    "folder_bytes",
    "open_state",
    "request_items",
    "state_folder",
    "state_size",
    "untuned_folder",
]
