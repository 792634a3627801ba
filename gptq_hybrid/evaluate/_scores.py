"""What one document says about one checkpoint, token by token."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True, slots=True)
class DocumentScores:
    """One document under one checkpoint, held against the reference. Arrays have one entry per predicted token."""

    domain: str
    key: str  # sha256 of the token ids: pairs documents across checkpoints
    kld: NDArray[np.float32]  # [T], KL(P_ref ‖ P_quant), nats
    top1: NDArray[np.bool_]  # [T], same argmax as the reference
    nll_ref: NDArray[np.float32]  # [T], nats
    nll: NDArray[np.float32]  # [T]
    # [D, K]: D positions, K drafts; 0 rows without MTP head.
    drafts_ref: NDArray[np.bool_]  # draft k+1 agrees with the reference's own argmax
    drafts: NDArray[np.bool_]  # the same of the quantized checkpoint, its own head against its own argmax
