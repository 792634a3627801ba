"""From the hidden states of two checkpoints to per-token scores."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from gptq_hybrid.calibration import EncodedDocument
from gptq_hybrid.streaming import Batch, OutputHead

from .documents import DocumentScores
from .passes import OnStep, Pass, choose_chunk


def score_tokens(
    logits_ref: torch.Tensor, logits: torch.Tensor, targets: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
    """Compare a distribution with the reference's, token by token.

    Args:
        logits_ref: float32 ``[tokens, vocabulary]``, the reference's.
        logits: float32 ``[tokens, vocabulary]``.
        targets: int64 ``[tokens]``, the tokens that followed.

    Returns:
        float32 KL(P_ref ‖ P) in nats, bool equality of the argmax, and float32 negative log likelihoods (nats)
        under the reference and under the other; each ``[tokens]``.
    """
    top1 = logits_ref.argmax(-1) == logits.argmax(-1)
    log_ref, log_own = logits_ref.log_softmax(-1), logits.log_softmax(-1)
    p_ref = log_ref.exp()
    # float32 holds the logarithm of a sum over the vocabulary to 1e-6 at best, a third of a divergence of 3e-6. So
    # sums in float64 measure by how much each distribution misses 1.
    off_ref, off_own = (p.sum(-1, dtype=torch.float64) for p in (p_ref, log_own.exp()))
    kld = (p_ref * (log_ref - log_own)).sum(-1, dtype=torch.float64) / off_ref + off_own.log() - off_ref.log()
    at = targets.to(logits.device)[:, None]
    nll_ref, nll = (
        (off.log() - log.gather(1, at)[:, 0]).float() for off, log in ((off_ref, log_ref), (off_own, log_own))
    )
    return kld.clamp_min(0).float(), top1, nll_ref, nll


def score_documents(
    documents: Sequence[EncodedDocument],
    batches: Sequence[Batch],
    reference: tuple[Pass, OutputHead],
    quantized: tuple[Pass, OutputHead],
    *,
    drafts: int,
    on_batch: OnStep | None = None,
) -> list[DocumentScores]:
    """Score every document, in the order of ``documents``; logits are computed a chunk at a time."""
    agreed_ref, agreed = reference[0].agreed, quantized[0].agreed
    scores: dict[int, DocumentScores] = {}
    for done, batch in enumerate(batches):
        rows = zip(
            batch.numbers,
            batch.lengths,
            batch.tokens,
            reference[0].hidden[done],
            quantized[0].hidden[done],
            strict=True,
        )
        for number, length, tokens, hidden_ref, hidden in rows:
            kld, top1, nll_ref, nll = _score_document(
                hidden_ref[: length - 1], hidden[: length - 1], tokens[1:length], reference[1], quantized[1]
            )
            document = documents[number]
            scores[number] = DocumentScores(
                document.domain,
                document.key,
                kld,
                top1,
                nll_ref,
                nll,
                drafts_ref=_agreement(agreed_ref, number, drafts),
                drafts=_agreement(agreed, number, drafts),
            )
        if on_batch is not None:
            on_batch(done + 1, len(batches))
    return [scores[number] for number in sorted(scores)]


def _score_document(
    hidden_ref: torch.Tensor,
    hidden: torch.Tensor,
    targets: torch.Tensor,
    head_ref: OutputHead,
    head: OutputHead,
) -> tuple[Any, Any, Any, Any]:
    size = choose_chunk(head.weight.device, head.vocabulary)
    with torch.inference_mode():
        parts = [
            score_tokens(
                head_ref.logits(hidden_ref[i : i + size]),
                head.logits(hidden[i : i + size]),
                targets[i : i + size],
            )
            for i in range(0, len(targets), size)
        ]
    kld, top1, nll_ref, nll = (torch.cat(column).cpu().numpy() for column in zip(*parts, strict=True))
    return kld, top1, nll_ref, nll


def _agreement(agreed: dict[int, torch.Tensor], number: int, drafts: int) -> NDArray[np.bool_]:
    """Return what ``agreed`` holds for a document, or no positions."""
    marks = agreed.get(number)
    return np.zeros((0, drafts), dtype=bool) if marks is None else marks.numpy()
