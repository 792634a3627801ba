"""The state of a quantization, kept beside its target so that a killed run goes on where it was.

``DST.partial`` is the folder: ``run.json`` says what the run is of (:mod:`._manifest`), ``lock`` belongs to the
process at work, ``gptqmodel`` is gptqmodel's own store (:mod:`gptq_hybrid.upstream._resume`), which publishes
a state by renaming one file. The folder goes when the target is there.
"""

from ._manifest import (
    before_calibration,
    differences,
    of_calibration,
    refuse_other_run,
)
from ._plan import ResumePlan, plan_resume
from ._size import StateSize, state_size
from ._source import source_identity
from ._state import RunState, folder_bytes, open_state, state_folder

__all__ = [
    "ResumePlan",
    "RunState",
    "StateSize",
    "before_calibration",
    "differences",
    "folder_bytes",
    "of_calibration",
    "open_state",
    "plan_resume",
    "refuse_other_run",
    "source_identity",
    "state_folder",
    "state_size",
]
