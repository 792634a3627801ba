"""Gated DeltaNet's states in 16 bits: what that would leave, and what it does to decoding."""

from __future__ import annotations

from gptq_hybrid.checkpoint import Checkpoint
from gptq_hybrid.common.errors import HybridError
from gptq_hybrid.memory import Fit, fit

from .speed import EQUAL

FLAG = "--mamba-ssm-cache-dtype float16"
# Nats a token: of states in float16, stepping the small model a token at a time (bench/mini/README.md); and of
# 4-bit weights, the recipe `static-mse`, beside it.
STATES_KLD, WEIGHTS_KLD = 1.8e-7, 0.0236


def half_states(checkpoint: Checkpoint, memory: int, fitted: Fit) -> Fit | None:
    """Divide a card as before, but with states in float16; None where that brings nothing to speak of.

    Args:
        checkpoint: an open one.
        memory: of the card, in bytes, as it is sold.
        fitted: how it is divided with states as they are.
    """
    if not fitted.fits:
        return None
    try:
        half = fit(
            checkpoint,
            memory,
            drafts=fitted.drafts,
            kv_dtype=fitted.kv_dtype,
            sequences=fitted.sequences,
            images=fitted.images,
            utilization=fitted.utilization,
            state_dtype="float16",
            tensor_parallel=fitted.tensor_parallel,
        )
    except HybridError:
        return None
    smaller = half.layout.state_bytes < fitted.layout.state_bytes
    return half if smaller and half.tokens >= fitted.tokens * (1 + EQUAL) else None


def about_states(checkpoint: Checkpoint, memory: int, fitted: Fit) -> str | None:
    """Recommend states in float16 in a sentence, with what they bring and cost; None where they bring nothing."""
    half = half_states(checkpoint, memory, fitted)
    if half is None:
        return None
    number = fitted.sequences
    return (
        f"Free as far as it was measured: {FLAG} would make {fitted.tokens:,} tokens of cache {half.tokens:,} with "
        f"{number} at once (derived). Decoding the small model it cost {STATES_KLD:.1e} nats a token, where 4-bit "
        f"weights cost {WEIGHTS_KLD}; no 27B was run with it."
    )
