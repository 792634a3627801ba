"""Turning what gptqmodel saves into a checkpoint of this project's format.

Main shards as gptqmodel writes them; the MTP head verbatim in ``mtp.safetensors``,
named in the index; configs that say what is quantized and hold no trace of the
machine; everything else as the source has it. :class:`Packaging` asks for more:
either head packed, no vision tower.
"""

from gptq_hybrid.recipes.packaging import Packaging, mtp_linears, output_head, refuse_impossible

from ._quant_log import write_records
from ._verdict import Limits, Verdict, judge
from ._write import CheckpointPlan, write_checkpoint

__all__ = [
    "CheckpointPlan",
    "Limits",
    "Packaging",
    "Verdict",
    "judge",
    "mtp_linears",
    "output_head",
    "refuse_impossible",
    "write_checkpoint",
    "write_records",
]
