"""Populations of documents that the simulations draw from, with true values known."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from gptq_hybrid.evaluate import DocumentScores


@dataclass(frozen=True)
class Population:
    """Documents whose tokens have log-normal KLD around a level of their own.

    What follows from KLD is kept: the NLL rises by it on average, with a variance of twice it (targets drawn from
    the reference, second order); the argmax changes where it is large.

    Attributes:
        documents, tokens: standard deviation of log KLD, between documents and within one.
        length: standard deviation of the log length, around 300 tokens.
        correlation: of log length and the document's log KLD.
        spikes: share of tokens with 30 times the KLD.
    """

    documents: float
    tokens: float
    length: float
    correlation: float
    spikes: float
    level: float = -5.0

    def draw(self, rng: np.random.Generator, count: int, domain: str = "d") -> list[DocumentScores]:
        """``count`` independent documents."""
        return [self._document(rng, domain, f"{i:06}") for i in range(count)]

    def _document(self, rng: np.random.Generator, domain: str, key: str) -> DocumentScores:
        shared, own = rng.normal(size=2)
        scale = self.level + self.documents * shared
        mixed = self.correlation * shared + np.sqrt(1 - self.correlation**2) * own
        tokens = int(np.clip(300 * np.exp(self.length * mixed), 32, 2048))
        kld = np.exp(rng.normal(scale, self.tokens, tokens))
        kld = np.minimum(np.where(rng.random(tokens) < self.spikes, 30 * kld, kld), 15.0)
        nll_ref = rng.gamma(0.6, 3.0, tokens)
        nll = nll_ref + rng.normal(kld, np.sqrt(2 * kld))
        top1 = rng.random(tokens) > np.minimum(0.5, 0.5 * np.sqrt(kld))
        rate = 1 / (1 + np.exp(-rng.normal(1.3, 0.6)))
        drafts_ref = rng.random((tokens - 2, 2)) < rate
        drafts = drafts_ref & (rng.random((tokens - 2, 2)) > 0.02 + 0.1 * rng.random())
        f4 = np.float32
        return DocumentScores(
            domain, key, kld.astype(f4), top1, nll_ref.astype(f4), nll.astype(f4), drafts_ref, drafts
        )


@dataclass(frozen=True)
class Measured:
    """Real documents, drawn with replacement: the truth is the figure of all of them."""

    scores: tuple[DocumentScores, ...]

    def draw(self, rng: np.random.Generator, count: int, domain: str = "d") -> list[DocumentScores]:
        """``count`` documents, each possibly several times."""
        chosen = [self.scores[i] for i in rng.integers(len(self.scores), size=count)]
        return [
            DocumentScores(domain, f"{i:06}", d.kld, d.top1, d.nll_ref, d.nll, d.drafts_ref, d.drafts)
            for i, d in enumerate(chosen)
        ]


MODERATE = Population(documents=0.4, tokens=1.6, length=0.5, correlation=0.0, spikes=0.0)
HEAVY = Population(documents=0.9, tokens=2.2, length=0.9, correlation=-0.4, spikes=0.002)
