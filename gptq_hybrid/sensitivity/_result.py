"""What a scan found: figures with intervals, by module, by kind of module, and of all modules together."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from gptq_hybrid.calibration import EncodedDocument
from gptq_hybrid.common.errors import HybridError
from gptq_hybrid.evaluate import Estimate, Statistics
from gptq_hybrid.evaluate.bootstrap import RESAMPLES, Array, draws_of, interval, ratio, resample
from gptq_hybrid.evaluate.documents import mean_of_domains

from ._forms import Form
from ._scan import EVERYTHING, REFERENCE_DRAFTS, Scan, variant_key
from ._units import Unit

SCHEMA = 1


@dataclass(frozen=True, slots=True)
class Measured:
    """One module in one form.

    Attributes:
        form: ``stored`` (the quantized checkpoint's own weights) or ``rtn4``, ``rtn8``, … (rounded to nearest).
        bytes: in a file; ``bytes_saved``: less than in BF16.
        kld: mean KL(P_ref ‖ P) at the output, nats per token; None for the MTP head, which changes no output.
        top1: share of tokens with the reference's argmax.
        acceptance_change: of the acceptance length, in tokens a step; MTP head only.
    """

    form: str
    bits: int
    bytes: int
    bytes_saved: int
    kld: Estimate | None = None
    top1: Estimate | None = None
    acceptance_change: Estimate | None = None


@dataclass(frozen=True, slots=True)
class Module:
    """Modules stored alike: ``modules`` are the checkpoint's names, ``layer`` is None for the heads."""

    name: str
    kind: str
    layer: int | None
    modules: tuple[str, ...]
    parameters: int
    measured: tuple[Measured, ...]

    def of(self, form: str) -> Measured | None:
        return next((m for m in self.measured if m.form == form), None)


@dataclass(frozen=True, slots=True)
class KindSum:
    """All modules of a kind in the layers, in one form: the sum of what each costs by itself."""

    kind: str
    form: str
    count: int
    kld_sum: Estimate
    bytes_saved: int


@dataclass(frozen=True, slots=True)
class Together:
    """All modules of the layers in one form: each by itself and added up, and all at once.

    ``ratio`` is ``kld_sum`` over ``kld``: 1 where costs add up.
    """

    form: str
    kld_sum: Estimate
    kld: Estimate
    top1: Estimate
    ratio: Estimate


@dataclass(frozen=True, slots=True)
class Sensitivity:
    """The result of ``qwen36 sensitivity``.

    Attributes:
        quantized: name of the quantized checkpoint; None where modules were only rounded.
        forms: by which the first is what modules are ranked by.
        acceptance_length: of the reference's own MTP head.
    """

    reference: str
    quantized: str | None
    forms: tuple[str, ...]
    modules: tuple[Module, ...]
    kinds: tuple[KindSum, ...]
    together: tuple[Together, ...]
    acceptance_length: Estimate | None = None
    environment: dict[str, Any] = field(default_factory=dict)
    settings: dict[str, Any] = field(default_factory=dict)
    fingerprints: dict[str, Any] = field(default_factory=dict)
    statistics: Statistics = field(default_factory=Statistics)


def summarize_scan(
    scan: Scan, *, reference: str, quantized: str | None, resamples: int = RESAMPLES, seed: int = 0
) -> Sensitivity:
    """Means over domains (which weigh alike, as in ``qwen36 eval``) with intervals over documents.

    Raises:
        HybridError: a KL divergence that is not finite, or the extra ``eval`` is not installed.
    """
    _refuse_not_finite(scan)
    figures = _Figures(scan.documents, resamples, seed)
    tokens = np.array([len(document.input_ids) - 1.0 for document in scan.documents])
    rows: dict[str, Array] = {}
    for key, arrays in scan.sums.items():
        if "kld" in arrays:
            rows[key] = figures.rate(arrays["kld"], tokens)
    own = scan.sums.get(REFERENCE_DRAFTS)
    modules = []
    for unit in scan.units:
        found = []
        for form in scan.forms:
            found_sums = scan.sums.get(variant_key(form, unit.name))
            if found_sums is None:
                continue
            kld = top1 = change = None
            if "kld" in found_sums:
                kld = figures.estimate(rows[variant_key(form, unit.name)])
                top1 = figures.estimate(figures.rate(found_sums["top1"], tokens))
            elif own is not None:
                change = figures.estimate(
                    figures.rate(found_sums["accepted"] - own["accepted"], own["positions"])
                )
            stored = form.stored_bytes(unit)
            found.append(
                Measured(form.label, form.bits(unit), stored, 2 * unit.parameters - stored, kld, top1, change)
            )
        names = tuple(linear.name for linear in unit.linears)
        modules.append(Module(unit.name, unit.kind, unit.layer, names, unit.parameters, tuple(found)))
    together = [t for form in scan.forms if (t := _together(scan, form, figures, rows, tokens)) is not None]
    length = None
    if own is not None:
        length = figures.estimate(1 + figures.rate(own["accepted"], own["positions"]))
    return Sensitivity(
        reference,
        quantized,
        tuple(form.label for form in scan.forms),
        tuple(modules),
        tuple(k for form in scan.forms for k in _kinds(scan, form, figures, rows)),
        tuple(together),
        length,
        dict(scan.environment),
        dict(scan.settings),
        dict(scan.fingerprints),
        Statistics(resamples=resamples, seed=seed),
    )


class _Figures:
    """Rates over the documents, for all draws at once; see ``evaluate``'s bootstrap."""

    def __init__(self, documents: Sequence[EncodedDocument], resamples: int, seed: int) -> None:
        domains: dict[str, list[int]] = {}
        for number, document in enumerate(documents):
            domains.setdefault(document.domain, []).append(number)
        self.members = [
            sorted(numbers, key=lambda number: documents[number].key) for numbers in domains.values()
        ]
        self.draws = draws_of(
            [resample(domain, len(numbers), resamples, seed) for domain, numbers in domains.items()]
        )

    def rate(self, sums: Array, counts: Array) -> Array:
        """``[rows]``: documents pooled within a domain, domains weighing alike; one row a draw."""
        rates = [
            ratio(
                self.draws.weights[:, columns] @ sums[members],
                self.draws.weights[:, columns] @ counts[members],
            )
            for columns, members in zip(self.draws.slices(), self.members, strict=True)
        ]
        return mean_of_domains([rate[:, None] for rate in rates])[:, 0]

    def estimate(self, rows: Array) -> Estimate:
        return interval(rows, self.draws)


def _in_layers(scan: Scan, form: Form) -> list[Unit]:
    return [
        unit for unit in scan.units if unit.place == "layer" and variant_key(form, unit.name) in scan.sums
    ]


def _kinds(scan: Scan, form: Form, figures: _Figures, rows: dict[str, Array]) -> list[KindSum]:
    kinds: dict[str, list[Unit]] = {}
    for unit in _in_layers(scan, form):
        kinds.setdefault(unit.kind, []).append(unit)
    return [
        KindSum(
            kind,
            form.label,
            len(units),
            figures.estimate(_sum([rows[variant_key(form, unit.name)] for unit in units])),
            sum(2 * unit.parameters - form.stored_bytes(unit) for unit in units),
        )
        for kind, units in kinds.items()
    ]


def _together(
    scan: Scan, form: Form, figures: _Figures, rows: dict[str, Array], tokens: Array
) -> Together | None:
    key = variant_key(form, EVERYTHING)
    if key not in rows:
        return None
    added = _sum([rows[variant_key(form, unit.name)] for unit in _in_layers(scan, form)])
    return Together(
        form.label,
        figures.estimate(added),
        figures.estimate(rows[key]),
        figures.estimate(figures.rate(scan.sums[key]["top1"], tokens)),
        figures.estimate(ratio(added, rows[key])),
    )


def _sum(rows: Sequence[Array]) -> Array:
    total: Array = np.sum(rows, axis=0)
    return total


def _refuse_not_finite(scan: Scan) -> None:
    for key, arrays in scan.sums.items():
        if "kld" in arrays and not np.isfinite(arrays["kld"]).all():
            raise HybridError(
                f"the KL divergence of {key} is not finite on "
                f"{int((~np.isfinite(arrays['kld'])).sum())} of {len(scan.documents)} documents",
                remedy="A module that computes NaN has no quality to measure. Run: qwen36 check CHECKPOINT",
            )
