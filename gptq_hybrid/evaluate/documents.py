"""Scores of documents: checked, put in order, and summed."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

from gptq_hybrid.common.errors import HybridError

from .bootstrap import Array, ratio

KLD, TOP1, NLL_REF, NLL = range(4)
_MEANS = 4


@dataclass(frozen=True, slots=True)
class DocumentScores:
    """One document under one checkpoint, compared with the reference.

    ``T`` is the number of predicted tokens, ``D`` of draft positions and ``K`` of drafts; ``D`` is 0 without an
    MTP head.

    Attributes:
        key: SHA-256 of the token ids; pairs documents across checkpoints.
        kld: float32 ``[T]``, KL(P_ref ‖ P_quant) in nats.
        top1: bool ``[T]``, same argmax as the reference.
        nll_ref: float32 ``[T]``, negative log likelihoods under the reference in nats.
        nll: float32 ``[T]``, under the checkpoint.
        drafts_ref: bool ``[D, K]``, the reference's draft k + 1 agrees with the reference's own argmax.
        drafts: bool ``[D, K]``, the same for the checkpoint: its own MTP head against its own argmax.
    """

    domain: str
    key: str
    kld: NDArray[np.float32]
    top1: NDArray[np.bool_]
    nll_ref: NDArray[np.float32]
    nll: NDArray[np.float32]
    drafts_ref: NDArray[np.bool_]
    drafts: NDArray[np.bool_]


class ScoresError(HybridError):
    """Scores that cannot be summed or compared."""


def group_by_domain(documents: Sequence[DocumentScores]) -> dict[str, list[DocumentScores]]:
    """Group documents by domain: domains in order of appearance, the documents of each sorted by key.

    Sorting makes results independent of the order of the documents.

    Raises:
        ScoresError: there are no documents, one occurs twice, arrays differ in length, or values are not finite.
    """
    if not documents:
        raise ScoresError(
            "There are no documents to summarize.", remedy="Give at least one document per domain."
        )
    domains: dict[str, list[DocumentScores]] = {}
    for document in documents:
        _refuse_malformed(document)
        domains.setdefault(document.domain, []).append(document)
    for domain, members in domains.items():
        members.sort(key=lambda d: d.key)
        for first, second in pairwise(members):
            if first.key == second.key:
                raise ScoresError(
                    f"Domain {domain!r} holds the same document twice (token ids {first.key[:12]}…).",
                    remedy="Remove the duplicate: intervals assume independent documents.",
                )
    return domains


def _refuse_malformed(document: DocumentScores) -> None:
    where = f"Document {document.key[:12]}… of domain {document.domain!r}"
    tokens = len(document.kld)
    if tokens == 0 or any(len(a) != tokens for a in (document.top1, document.nll_ref, document.nll)):
        raise ScoresError(
            f"{where} has arrays of {tokens} KLD, {len(document.top1)} top-1, {len(document.nll_ref)} and "
            f"{len(document.nll)} NLL values.",
            remedy="All four need one value per predicted token, and at least one. Score the document again.",
        )
    for name in ("kld", "nll_ref", "nll"):
        not_finite = int(np.count_nonzero(~np.isfinite(getattr(document, name))))
        if not_finite:
            raise ScoresError(
                f"{where}: {not_finite} of {tokens} values of {name} are NaN or infinite.",
                remedy="A checkpoint that computes NaN has no quality to measure. Run: qwen36 check CHECKPOINT",
            )


def count_drafts(documents: Sequence[DocumentScores], name: str) -> int:
    """Return K of the arrays ``drafts`` or ``drafts_ref``; 0 if no document has a draft position.

    Raises:
        ScoresError: documents with different numbers of drafts.
    """
    counts = {a.shape[1] for d in documents if (a := getattr(d, name)).size}
    if len(counts) > 1:
        raise ScoresError(
            f"Documents were scored with different numbers of drafts: {sorted(counts)}.",
            remedy="Score all documents with the same number of drafts.",
        )
    return counts.pop() if counts else 0


@dataclass(frozen=True, slots=True)
class RateColumns:
    """The columns of :meth:`Sums.rates`: KLD, top-1, both NLLs, the reference's drafts, the checkpoint's."""

    drafts_ref: int
    drafts: int

    @classmethod
    def of(cls, documents: Sequence[DocumentScores]) -> RateColumns:
        return cls(count_drafts(documents, "drafts_ref"), count_drafts(documents, "drafts"))

    @property
    def ref(self) -> slice:
        """Columns of the reference's drafts."""
        return slice(_MEANS, _MEANS + self.drafts_ref)

    @property
    def quant(self) -> slice:
        """Columns of the quantized checkpoint's drafts."""
        return slice(_MEANS + self.drafts_ref, _MEANS + self.drafts_ref + self.drafts)


@dataclass(frozen=True, slots=True)
class Sums:
    """Numerators and denominators of the rates of each document: float64 ``[N, 4 + K_ref + K]``."""

    numerators: Array
    denominators: Array

    @classmethod
    def of(cls, documents: Sequence[DocumentScores], columns: RateColumns) -> Sums:
        """Sum over the tokens and the draft positions of each document.

        Draft k + 1 counts only if all drafts before it agreed too: then a verifier would have accepted it.
        """
        numerators, denominators = [], []
        for d in documents:
            tokens = len(d.kld)
            sums = [float(a.sum(dtype=np.float64)) for a in (d.kld, d.top1, d.nll_ref, d.nll)]
            counts = [tokens] * _MEANS
            for drafts, count in ((d.drafts_ref, columns.drafts_ref), (d.drafts, columns.drafts)):
                positions = len(drafts) if drafts.size else 0
                leading = (
                    np.logical_and.accumulate(drafts, axis=1).sum(axis=0) if positions else np.zeros(count)
                )
                sums += leading.tolist()
                counts += [positions] * count
            numerators.append(sums)
            denominators.append(counts)
        return cls(np.array(numerators, dtype=np.float64), np.array(denominators, dtype=np.float64))

    def rates(self, weights: Array) -> Array:
        """Pool documents with weights ``[rows, N]``: rates ``[rows, columns]``, NaN if nothing was counted."""
        return ratio(weights @ self.numerators, weights @ self.denominators)


def average_domains(rates: Sequence[Array]) -> Array:
    """Average the rates of domains, all with the same weight.

    A domain without a draft position in the sample does not count for drafts.
    """
    stacked = np.stack(rates)
    counted = np.isfinite(stacked[:, 0, :])
    total = np.where(counted[:, None, :], stacked, 0.0).sum(axis=0)
    return ratio(total, np.broadcast_to(counted.sum(axis=0).astype(np.float64), total.shape))


def refuse_unpaired(
    a: Mapping[str, Sequence[DocumentScores]],
    b: Mapping[str, Sequence[DocumentScores]],
    names: tuple[str, str],
) -> None:
    """Make sure that two checkpoints were scored on the same documents.

    Raises:
        ScoresError: documents of one are missing in the other, or were cut differently.
    """
    for domain in dict.fromkeys((*a, *b)):
        keys = [{d.key: len(d.kld) for d in side.get(domain, ())} for side in (a, b)]
        missing = [len(keys[1].keys() - keys[0].keys()), len(keys[0].keys() - keys[1].keys())]
        if any(missing):
            raise ScoresError(
                f"{names[0]} and {names[1]} were scored on different documents: in domain {domain!r} "
                f"{names[0]} lacks {missing[0]} and {names[1]} lacks {missing[1]} of "
                f"{len(keys[0].keys() | keys[1].keys())}.",
                remedy="A paired comparison needs the same texts, tokenizer and length. Score both in one run.",
            )
        if keys[0] != keys[1]:
            raise ScoresError(
                f"{names[0]} and {names[1]} were scored on different tokens of the documents of domain {domain!r}.",
                remedy="Score both in one run.",
            )
