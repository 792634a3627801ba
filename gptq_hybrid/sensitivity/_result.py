"""The result of a scan, and its JSON file: figures by module, by kind of module, and of all modules together."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from gptq_hybrid.calibration import EncodedDocument
from gptq_hybrid.checkpoint import read_json_object
from gptq_hybrid.common.atomic import write_json_atomic
from gptq_hybrid.common.errors import HybridError
from gptq_hybrid.common.typed_json import FormatError, read_object
from gptq_hybrid.evaluate import Estimate, Statistics
from gptq_hybrid.evaluate.bootstrap import RESAMPLES, Array, build_draws, interval, ratio, resample
from gptq_hybrid.evaluate.documents import average_domains

from ._precisions import Precision
from ._scan import EVERYTHING, REFERENCE_DRAFTS, Scan
from ._units import Unit
from ._walk import variant_key

SCHEMA = 1
_REMEDY = "Give a file that qwen36 sensitivity wrote, or run it again."


@dataclass(frozen=True, slots=True)
class Measured:
    """One module in one precision.

    Attributes:
        form: label of the precision: ``stored`` (the quantized checkpoint's own weights) or ``rtn4``, ``rtn8``, …
            (rounded to nearest).
        bytes: in a file.
        bytes_saved: against BF16.
        kld: mean KL(P_ref ‖ P) at the output in nats per token; None for the MTP head, which changes no output.
        top1: share of tokens with the reference's argmax.
        acceptance_change: of the acceptance length, in tokens per step; MTP head only.
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
    """Modules stored alike: ``modules`` are the checkpoint's names; ``layer`` is None for the heads."""

    name: str
    kind: str
    layer: int | None
    modules: tuple[str, ...]
    parameters: int
    measured: tuple[Measured, ...]

    def measured_in(self, form: str) -> Measured | None:
        """Return the figures of the precision labelled ``form``; None if it was not tried."""
        return next((m for m in self.measured if m.form == form), None)


@dataclass(frozen=True, slots=True)
class KindSum:
    """All modules of a kind in the layers, in one precision: the sum of what each costs by itself."""

    kind: str
    form: str
    count: int
    kld_sum: Estimate
    bytes_saved: int


@dataclass(frozen=True, slots=True)
class Together:
    """All modules of the layers in one precision: the sum of single costs, and the cost of all at once.

    ``ratio`` is ``kld_sum`` divided by ``kld``: 1 if costs add up.
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
        quantized: name of the quantized checkpoint; None if modules were only rounded.
        forms: labels of the precisions; modules are ranked by the first.
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


def as_json(result: Sensitivity) -> dict[str, Any]:
    """Return a JSON object: ``schema`` (1), then the fields of :class:`Sensitivity`."""
    return {"schema": SCHEMA, **dataclasses.asdict(result)}


def write_sensitivity(path: str | Path, result: Sensitivity) -> None:
    """Write the JSON file, which appears only once it is complete."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    write_json_atomic(path, as_json(result))


def read_sensitivity(path: str | Path) -> Sensitivity:
    """Read what :func:`write_sensitivity` wrote.

    Raises:
        CheckpointError: the file is unreadable, or not a JSON object.
        FormatError: another schema, or a field that is missing or of the wrong kind.
    """
    path = Path(path)
    content: Mapping[str, Any] = read_json_object(path)
    if content.get("schema") != SCHEMA or "together" not in content:
        raise FormatError(
            f"{path} is not a sensitivity scan of schema {SCHEMA}; its schema is {content.get('schema')!r}.",
            remedy=_REMEDY,
        )
    result: Sensitivity = read_object(Sensitivity, content, str(path), remedy=_REMEDY)
    return result


def summarize_scan(
    scan: Scan, *, reference: str, quantized: str | None, resamples: int = RESAMPLES, seed: int = 0
) -> Sensitivity:
    """Compute means over domains, which weigh alike as in ``qwen36 eval``, with intervals over documents.

    Raises:
        HybridError: a KL divergence is not finite, or the extra ``eval`` is not installed.
    """
    _refuse_not_finite(scan)
    figures = _Figures(scan.documents, resamples, seed)
    tokens = np.array([len(document.input_ids) - 1.0 for document in scan.documents])
    rates: dict[str, Array] = {}
    for key, arrays in scan.sums.items():
        if "kld" in arrays:
            rates[key] = figures.rate(arrays["kld"], tokens)
    own = scan.sums.get(REFERENCE_DRAFTS)
    modules = []
    for unit in scan.units:
        measured = []
        for precision in scan.precisions:
            key = variant_key(precision, unit.name)
            sums = scan.sums.get(key)
            if sums is None:
                continue
            kld = top1 = change = None
            if "kld" in sums:
                kld = figures.estimate(rates[key])
                top1 = figures.estimate(figures.rate(sums["top1"], tokens))
            elif own is not None:
                change = figures.estimate(figures.rate(sums["accepted"] - own["accepted"], own["positions"]))
            stored = precision.stored_bytes(unit)
            saved = 2 * unit.parameters - stored
            measured.append(Measured(precision.label, precision.bits(unit), stored, saved, kld, top1, change))
        names = tuple(linear.name for linear in unit.linears)
        modules.append(Module(unit.name, unit.kind, unit.layer, names, unit.parameters, tuple(measured)))
    together = [_sum_all(scan, precision, figures, rates, tokens) for precision in scan.precisions]
    length = None
    if own is not None:
        length = figures.estimate(1 + figures.rate(own["accepted"], own["positions"]))
    return Sensitivity(
        reference,
        quantized,
        tuple(precision.label for precision in scan.precisions),
        tuple(modules),
        tuple(k for precision in scan.precisions for k in _sum_kinds(scan, precision, figures, rates)),
        tuple(t for t in together if t is not None),
        length,
        dict(scan.environment),
        dict(scan.settings),
        dict(scan.fingerprints),
        Statistics(resamples=resamples, seed=seed),
    )


class _Figures:
    """Rates over the documents for all draws at once; see :mod:`gptq_hybrid.evaluate.bootstrap`."""

    def __init__(self, documents: Sequence[EncodedDocument], resamples: int, seed: int) -> None:
        domains: dict[str, list[int]] = {}
        for number, document in enumerate(documents):
            domains.setdefault(document.domain, []).append(number)
        self.members = [
            sorted(numbers, key=lambda number: documents[number].key) for numbers in domains.values()
        ]
        self.draws = build_draws(
            [resample(domain, len(numbers), resamples, seed) for domain, numbers in domains.items()]
        )

    def rate(self, sums: Array, counts: Array) -> Array:
        """Pool documents within a domain, and average domains alike: ``[rows]``, one row per draw."""
        rates = [
            ratio(
                self.draws.weights[:, columns] @ sums[members],
                self.draws.weights[:, columns] @ counts[members],
            )
            for columns, members in zip(self.draws.slices(), self.members, strict=True)
        ]
        return average_domains([rate[:, None] for rate in rates])[:, 0]

    def estimate(self, rows: Array) -> Estimate:
        return interval(rows, self.draws)


def _layer_units(scan: Scan, precision: Precision) -> list[Unit]:
    return [
        unit
        for unit in scan.units
        if unit.place == "layer" and variant_key(precision, unit.name) in scan.sums
    ]


def _sum_kinds(scan: Scan, precision: Precision, figures: _Figures, rates: dict[str, Array]) -> list[KindSum]:
    kinds: dict[str, list[Unit]] = {}
    for unit in _layer_units(scan, precision):
        kinds.setdefault(unit.kind, []).append(unit)
    return [
        KindSum(
            kind,
            precision.label,
            len(units),
            figures.estimate(_sum([rates[variant_key(precision, unit.name)] for unit in units])),
            sum(2 * unit.parameters - precision.stored_bytes(unit) for unit in units),
        )
        for kind, units in kinds.items()
    ]


def _sum_all(
    scan: Scan, precision: Precision, figures: _Figures, rates: dict[str, Array], tokens: Array
) -> Together | None:
    key = variant_key(precision, EVERYTHING)
    if key not in rates:
        return None
    added = _sum([rates[variant_key(precision, unit.name)] for unit in _layer_units(scan, precision)])
    return Together(
        precision.label,
        figures.estimate(added),
        figures.estimate(rates[key]),
        figures.estimate(figures.rate(scan.sums[key]["top1"], tokens)),
        figures.estimate(ratio(added, rates[key])),
    )


def _sum(rates: Sequence[Array]) -> Array:
    total: Array = np.sum(rates, axis=0)
    return total


def _refuse_not_finite(scan: Scan) -> None:
    for key, arrays in scan.sums.items():
        if "kld" in arrays and not np.isfinite(arrays["kld"]).all():
            raise HybridError(
                f"the KL divergence of {key} is not finite on "
                f"{int((~np.isfinite(arrays['kld'])).sum())} of {len(scan.documents)} documents",
                remedy="A module that computes NaN has no quality to measure. Run: qwen36 check CHECKPOINT",
            )
