"""Turn what gptqmodel saves into a checkpoint of this project's format.

The main shards are gptqmodel's. The MTP head lies verbatim in ``mtp.safetensors`` and is named in the index.
Configs say what is quantized and hold no trace of the machine. All else is as the source has it. With a
:class:`~gptq_hybrid.recipes.Packaging` the two heads are packed, or the vision tower left out.
"""

from ._packed import replace_tensors
from ._verdict import Limits, QuantizationFailedError, Verdict, judge
from ._write import CheckpointSpec, refuse_faults, write_checkpoint

__all__ = [
    "CheckpointSpec",
    "Limits",
    "QuantizationFailedError",
    "Verdict",
    "judge",
    "refuse_faults",
    "replace_tensors",
    "write_checkpoint",
]
