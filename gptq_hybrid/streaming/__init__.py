"""Forward passes of a checkpoint of any size, with one layer in memory at a time.

The checkpoint is a folder, dense or GPTQ; the layers are transformers' own modules. Between layers only hidden
states are kept, in main memory. So for a 27B model the GPU holds one layer, one batch of activations and the
output head.
"""

from ._forward import Batch, LayerStream, States, make_batches, read_ahead, read_layers
from ._heads import MtpHead, OutputHead
from ._stack import TextStack
from ._weights import CheckpointWeights, Overlay, Weights

__all__ = [
    "Batch",
    "CheckpointWeights",
    "LayerStream",
    "MtpHead",
    "OutputHead",
    "Overlay",
    "States",
    "TextStack",
    "Weights",
    "make_batches",
    "read_ahead",
    "read_layers",
]
