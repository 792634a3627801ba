"""Hand-made results."""

from __future__ import annotations

from collections.abc import Mapping

from gptq_hybrid.checkpoint import TensorLayout
from gptq_hybrid.evaluate import Estimate
from gptq_hybrid.sensitivity import KindSum, Measured, Module, Sensitivity, Together, Unit, list_units
from gptq_hybrid.sensitivity._precisions import Rounded


def estimate(value: float) -> Estimate:
    return Estimate(value, value * 0.9, value * 1.1)


def result(
    layout: TensorLayout, klds: Mapping[str, Mapping[int, float]], *, otherwise: Mapping[int, float]
) -> Sensitivity:
    """Make a result from the KLD of units by name and bits; ``otherwise`` is for units that are not named."""
    modules = tuple(_module(u, klds.get(u.name, otherwise)) for u in list_units(layout, mtp=True))
    forms = tuple(f"rtn{bits}" for bits in otherwise)
    kinds = dict.fromkeys(m.kind for m in modules if m.layer is not None)
    return Sensitivity(
        "original",
        None,
        forms,
        modules,
        tuple(KindSum(kind, form, 2, estimate(0.1), 10**6) for form in forms for kind in kinds),
        tuple(Together(f, estimate(0.2), estimate(0.25), estimate(0.9), estimate(0.8)) for f in forms),
        estimate(2.5),
        {"device": "none"},
        {"documents": 3, "tokens": 50, "group_size": 128},
    )


def _module(unit: Unit, klds: Mapping[int, float]) -> Module:
    draft = unit.place == "mtp"
    measured = []
    for bits, kld in klds.items():
        size = Rounded(bits, 128).stored_bytes(unit)
        measured.append(
            Measured(
                f"rtn{bits}",
                bits,
                size,
                2 * unit.parameters - size,
                None if draft else estimate(kld),
                None if draft else estimate(0.9),
                estimate(-0.01) if draft else None,
            )
        )
    names = tuple(linear.name for linear in unit.linears)
    return Module(unit.name, unit.kind, unit.layer, names, unit.parameters, tuple(measured))
