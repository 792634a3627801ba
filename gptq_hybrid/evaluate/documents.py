"""Documents put in order, checked, and added up."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np

from gptq_hybrid.common.errors import HybridError

from ._scores import DocumentScores
from .bootstrap import Array, ratio

KLD, TOP1, NLL_REF, NLL = range(4)
_MEANS = 4


class ScoresError(HybridError):
    """Scores that cannot be summed up or compared."""


def by_domain(documents: Sequence[DocumentScores]) -> dict[str, list[DocumentScores]]:
    """Documents of each domain, domains in order of appearance, documents by key: order of arrival says nothing.

    Raises:
        ScoresError: no documents, one of them twice, arrays of different lengths, or values that are no numbers.
    """
    if not documents:
        raise ScoresError(
            "There are no documents to sum up.", remedy="Give at least one document per domain."
        )
    domains: dict[str, list[DocumentScores]] = {}
    for document in documents:
        _check(document)
        domains.setdefault(document.domain, []).append(document)
    for domain, members in domains.items():
        members.sort(key=lambda d: d.key)
        for one, next_ in pairwise(members):
            if one.key == next_.key:
                raise ScoresError(
                    f"Domain {domain!r} holds the same document twice (token ids {one.key[:12]}…).",
                    remedy="Remove the duplicate: intervals take documents as independent.",
                )
    return domains


def _check(document: DocumentScores) -> None:
    where = f"Document {document.key[:12]}… of domain {document.domain!r}"
    tokens = len(document.kld)
    if tokens == 0 or any(len(a) != tokens for a in (document.top1, document.nll_ref, document.nll)):
        raise ScoresError(
            f"{where} has arrays of {tokens} KLD, {len(document.top1)} top-1, {len(document.nll_ref)} and "
            f"{len(document.nll)} NLL values.",
            remedy="All four need one value per predicted token, and at least one. Score the document again.",
        )
    for name in ("kld", "nll_ref", "nll"):
        wrong = int(np.count_nonzero(~np.isfinite(getattr(document, name))))
        if wrong:
            raise ScoresError(
                f"{where}: {wrong} of {tokens} values of {name} are NaN or infinite.",
                remedy="A checkpoint that computes NaN has no quality to measure. Run: qwen36 check CHECKPOINT",
            )


def drafts_of(documents: Sequence[DocumentScores], name: str) -> int:
    """K of the arrays ``drafts`` or ``drafts_ref``; 0 where no document has a position.

    Raises:
        ScoresError: documents with different numbers of drafts.
    """
    found = {a.shape[1] for d in documents if (a := getattr(d, name)).size}
    if len(found) > 1:
        raise ScoresError(
            f"Documents were drafted with different numbers of drafts: {sorted(found)}.",
            remedy="Score all documents with the same number of drafts.",
        )
    return found.pop() if found else 0


@dataclass(frozen=True, slots=True)
class Layout:
    """Where a rate lies in the columns of :func:`rates`: KLD, top-1, both NLLs, then the drafts."""

    drafts_ref: int
    drafts: int

    @classmethod
    def of(cls, documents: Sequence[DocumentScores]) -> Layout:
        return cls(drafts_of(documents, "drafts_ref"), drafts_of(documents, "drafts"))

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
    """Numerators and denominators of the rates of each document, [N, 4 + K_ref + K] float64."""

    numerators: Array
    denominators: Array

    @classmethod
    def of(cls, documents: Sequence[DocumentScores], layout: Layout) -> Sums:
        """Sums over the tokens and the draft positions of each document.

        Draft k + 1 counts where all before it agreed too: what a verifier would have accepted.
        """
        numerators, denominators = [], []
        for d in documents:
            tokens = len(d.kld)
            sums = [float(a.sum(dtype=np.float64)) for a in (d.kld, d.top1, d.nll_ref, d.nll)]
            counts = [tokens] * _MEANS
            for drafts, wanted in ((d.drafts_ref, layout.drafts_ref), (d.drafts, layout.drafts)):
                here = len(drafts) if drafts.size else 0
                accepted = np.logical_and.accumulate(drafts, axis=1).sum(axis=0) if here else np.zeros(wanted)
                sums += accepted.tolist()
                counts += [here] * wanted
            numerators.append(sums)
            denominators.append(counts)
        return cls(np.array(numerators, dtype=np.float64), np.array(denominators, dtype=np.float64))

    def rates(self, weights: Array) -> Array:
        """Rates [rows, columns] of documents pooled with the weights [rows, N]; NaN where nothing was counted."""
        return ratio(weights @ self.numerators, weights @ self.denominators)


def mean_of_domains(rates: Sequence[Array]) -> Array:
    """Rates over all: domains weigh alike. Those without a draft position in the sample have no say on drafts."""
    stacked = np.stack(rates)
    counted = np.isfinite(stacked[:, 0, :])
    total = np.where(counted[:, None, :], stacked, 0.0).sum(axis=0)
    return ratio(total, np.broadcast_to(counted.sum(axis=0).astype(np.float64), total.shape))


def paired(
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
        lacking = [len(keys[1].keys() - keys[0].keys()), len(keys[0].keys() - keys[1].keys())]
        if any(lacking):
            raise ScoresError(
                f"{names[0]} and {names[1]} were scored on different documents: in domain {domain!r} "
                f"{names[0]} lacks {lacking[0]} and {names[1]} lacks {lacking[1]} of "
                f"{len(keys[0].keys() | keys[1].keys())}.",
                remedy="A paired comparison needs the same texts, tokenizer and length. Score both in one run.",
            )
        if keys[0] != keys[1]:
            raise ScoresError(
                f"{names[0]} and {names[1]} were scored on different tokens of the documents of domain {domain!r}.",
                remedy="Score both in one run.",
            )
