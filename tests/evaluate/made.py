"""Hand-made and random scores."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from gptq_hybrid.evaluate import DocumentScores


def scores(
    domain: str,
    key: str,
    kld: Sequence[float],
    *,
    top1: Sequence[bool] | None = None,
    nll_ref: Sequence[float] | None = None,
    nll: Sequence[float] | None = None,
    drafts_ref: Sequence[Sequence[bool]] = (),
    drafts: Sequence[Sequence[bool]] = (),
) -> DocumentScores:
    """One document; arrays that are left out say that nothing changed."""
    tokens = len(kld)
    ref = np.ones(tokens) if nll_ref is None else np.array(nll_ref)
    return DocumentScores(
        domain,
        key,
        np.array(kld, dtype=np.float32),
        np.ones(tokens, dtype=bool) if top1 is None else np.array(top1, dtype=bool),
        ref.astype(np.float32),
        (ref if nll is None else np.array(nll)).astype(np.float32),
        _drafts(drafts_ref),
        _drafts(drafts),
    )


def _drafts(rows: Sequence[Sequence[bool]]) -> Any:
    return np.array(rows, dtype=bool) if len(rows) else np.zeros((0, 2), dtype=bool)


def random_scores(
    rng: np.random.Generator, domain: str, count: int, *, level: float = 0.02, drafts: bool = True
) -> list[DocumentScores]:
    """Documents of 20 to 120 tokens; the KLD of each is exponential around its own level."""
    documents = []
    for i in range(count):
        tokens = int(rng.integers(20, 120))
        kld = rng.exponential(level * np.exp(rng.normal(0, 0.5)), tokens)
        ref = rng.gamma(1.0, 2.0, tokens)
        agree = rng.random((2, tokens - 2, 2)) < 0.8
        documents.append(
            scores(
                domain,
                f"{domain}-{i:03}",
                kld.tolist(),
                top1=(rng.random(tokens) < 0.95).tolist(),
                nll_ref=ref.tolist(),
                nll=(ref + rng.normal(kld, np.sqrt(2 * kld))).tolist(),
                drafts_ref=agree[0].tolist() if drafts else (),
                drafts=agree[1].tolist() if drafts else (),
            )
        )
    return documents


def shifted(documents: Sequence[DocumentScores], factor: float) -> list[DocumentScores]:
    """The same documents with KLD times ``factor``."""
    return [
        DocumentScores(
            d.domain, d.key, d.kld * np.float32(factor), d.top1, d.nll_ref, d.nll, d.drafts_ref, d.drafts
        )
        for d in documents
    ]
