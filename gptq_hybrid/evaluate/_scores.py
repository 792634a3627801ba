"""What one document says about one checkpoint, token by token."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True, slots=True)
class DocumentScores:
    """One document under one checkpoint, held against the reference. Arrays have one entry per predicted token."""

    domain: str
    key: str  # sha256 of the token ids: pairs documents across checkpoints
    kld: np.ndarray  # float32 [T], KL(P_ref ‖ P_quant), nats
    top1: np.ndarray  # bool [T], same argmax as the reference
    nll_ref: np.ndarray  # float32 [T], nats
    nll: np.ndarray  # float32 [T]
    # [D, K]: D positions, K drafts; 0 rows without MTP head.
    drafts_ref: np.ndarray  # bool [D, K]: draft k+1 agrees with the reference's own argmax
    drafts: np.ndarray  # the same of the quantized checkpoint, its own head against its own argmax
