"""From hidden states to sums by document: KL divergence from the reference, and equality of the argmax."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from gptq_hybrid.evaluate.passes import choose_chunk
from gptq_hybrid.streaming import Batch, OutputHead, States


@dataclass(frozen=True, slots=True)
class DocumentSums:
    """Sums over the predicted tokens of each document: KL divergence in nats, and tokens with the same argmax."""

    kld: NDArray[np.float64]
    top1: NDArray[np.float64]


class Scorer:
    """Compares variants with the reference.

    Args:
        batches: the documents.
        documents: how many there are in ``batches``.
        reference: final-normed states of the reference for each batch.
        head: the reference's output head.
    """

    def __init__(self, batches: Sequence[Batch], documents: int, reference: States, head: OutputHead) -> None:
        self.batches = batches
        self.documents = documents
        self.reference = reference
        self.head = head

    def score(self, variants: Mapping[str, tuple[States, OutputHead]]) -> dict[str, DocumentSums]:
        """Sum up each variant from its final-normed states and output head.

        The reference's logits are computed once for all variants.
        """
        sums = {key: DocumentSums(np.zeros(self.documents), np.zeros(self.documents)) for key in variants}
        with torch.inference_mode():
            for number, places, documents in self._chunks():
                log_ref = self.head.logits(_select(self.reference[number], places)).log_softmax(-1)
                best, p_ref = log_ref.argmax(-1), log_ref.exp()
                off_ref = p_ref.sum(-1, dtype=torch.float64)
                for key, (states, head) in variants.items():
                    logits = head.logits(_select(states[number], places))
                    same = logits.argmax(-1) == best
                    log_own = logits.log_softmax(-1)
                    # As in evaluate's score_tokens: float64 sums measure by how much each distribution misses 1.
                    # At 8 bits that is a part of what a module costs.
                    terms = (p_ref * (log_ref - log_own)).sum(-1, dtype=torch.float64)
                    off_own = log_own.exp().sum(-1, dtype=torch.float64)
                    kld = (terms / off_ref + off_own.log() - off_ref.log()).clamp_min(0)
                    np.add.at(sums[key].kld, documents, kld.cpu().numpy())
                    np.add.at(sums[key].top1, documents, same.cpu().numpy())
        return sums

    def _chunks(self) -> Iterator[tuple[int, torch.Tensor, NDArray[np.int64]]]:
        """Yield a batch's number, indices ``[tokens]`` into its flattened positions, and the document of each."""
        size = choose_chunk(self.head.weight.device, self.head.vocabulary)
        for number, batch in enumerate(self.batches):
            width = batch.tokens.shape[1]
            # What follows the last token of a document is unknown.
            places = torch.cat(
                [
                    torch.arange(row * width, row * width + length - 1)
                    for row, length in enumerate(batch.lengths)
                ]
            )
            documents = np.repeat(np.array(batch.numbers), np.array(batch.lengths) - 1)
            for start in range(0, len(places), size):
                yield number, places[start : start + size], documents[start : start + size]


def _select(states: torch.Tensor, places: torch.Tensor) -> torch.Tensor:
    return states.reshape(-1, states.shape[-1])[places]
