"""Forward passes of a checkpoint of any size, one layer in memory at a time.

Dense or GPTQ, from a folder; the layers are transformers' own modules. What is kept between layers are hidden
states in main memory, so a 27B model needs a GPU only for one layer, a batch of activations and the output head.
"""

from ._batches import Batch, make_batches
from ._drafts import DraftHead
from ._forward import LayerStream, States, read_layers
from ._logits import OutputHead
from ._stack import TextStack
from ._weights import CheckpointWeights, Overlay, Weights

__all__ = [
    "Batch",
    "CheckpointWeights",
    "DraftHead",
    "LayerStream",
    "OutputHead",
    "Overlay",
    "States",
    "TextStack",
    "Weights",
    "make_batches",
    "read_layers",
]
