"""Record what GPTQ did to each module while gptqmodel runs.

Changes: wraps ``GPTQ.finalize_hessian`` and ``GPTQ.quantize``, and what ``_damping`` and ``_gptaq`` wrap.
Why: gptqmodel logs a loss that scales with 1/tokens, rounds it to ten decimals, and turns failures into a word
    in that column. Error relative to the output, dead columns and the reason for a fallback come from the same
    solver call.
Versions: 6.0.3 to 7.7.0.
Checks: both methods exist, ``quantize`` returns eight values.
May go: when gptqmodel's log has these columns.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import wraps
from typing import TYPE_CHECKING, Any

from gptq_hybrid.losses import ModuleRecord

from ._damping import module_name, record_damping
from ._energy import energy
from ._gptaq import record_gptaq
from .versions import moved

if TYPE_CHECKING:
    import torch

# What 7.x gives as the loss of a module that saw nothing, if fallbacks are off.
_NOT_ACTIVATED = 999999999


@dataclass(slots=True)
class _HessianFacts:
    energy: float
    mean_diagonal: float
    dead: torch.Tensor
    dead_columns: int
    nonfinite_columns: int


def _inspect_hessian(weight: torch.Tensor, hessian: torch.Tensor) -> _HessianFacts:
    import torch

    diagonal = hessian.diagonal()
    dead = diagonal == 0
    # GPTQ sets the diagonal of dead columns to 1 before it damps by a share of the mean.
    mean = torch.where(dead, 1.0, diagonal).mean()
    # No entry of a Gram matrix exceeds the diagonal: with that finite, all is.
    nonfinite = int((~diagonal.isfinite()).sum())
    return _HessianFacts(energy(weight, hessian), float(mean), dead, int(dead.sum()), nonfinite)


def _relative_error(
    facts: _HessianFacts,
    weight: torch.Tensor,
    quantized: torch.Tensor,
    loss: float,
    tokens: int,
    damp: float,
    floor: float,
) -> float | None:
    """Derive the error from the solver's own loss.

    The summed loss equals ½ tr(ΔW H_d ΔWᵀ) exactly, as each step of GPTQ adds the rise of that quadratic form.
    H_d is H with ``floor · mean(diag H)`` on its diagonal, damped by ``damp`` times the mean of that. So the
    undamped numerator follows without keeping H. Weights of dead columns are zeroed before the solver starts
    and are no part of ΔW there.
    """
    if not facts.energy > 0:
        return None
    change = (weight.float() - quantized.to(weight.device).float()).square().sum(dim=0)
    delta: float = change[~facts.dead.to(change.device)].sum().item()
    added = facts.mean_diagonal * (floor + damp * (1.0 + floor))
    return max(0.0, 2.0 * loss * tokens - added * delta) / facts.energy


def _reason(outcome: str, facts: _HessianFacts | None) -> str:
    if outcome == "nan":
        return "NaN loss"
    if outcome != "fallback":
        return ""
    if facts is None:  # decided before the Hessian is looked at
        return "too few tokens"
    return "inputs not finite" if facts.nonfinite_columns else "not positive definite"


def _record(
    solver: Any, weight: torch.Tensor, out: tuple[Any, ...], facts: _HessianFacts | None, floor: float
) -> ModuleRecord:
    quantized, _, _, _, _, loss, damp, tokens = out
    outcome = "gptq"
    if not isinstance(loss, (int, float)) or loss == _NOT_ACTIVATED:
        outcome = "fallback"
    elif getattr(solver.qcfg, "mock_quantization", False):
        outcome = "nan"
    error = None
    if outcome == "gptq" and facts is not None and quantized.shape == weight.shape:
        error = _relative_error(facts, weight, quantized, loss, tokens, damp, floor)
    return ModuleRecord(
        module=module_name(solver),
        columns=int(weight.shape[1]),
        tokens=int(tokens),
        loss=float(loss) if outcome == "gptq" else None,
        damp=float(damp),
        relative_error=error,
        dead_columns=facts.dead_columns if facts else 0,
        outcome=outcome,
        reason=_reason(outcome, facts),
        floor=0.0,
        nonfinite_columns=facts.nonfinite_columns if facts else 0,
    )


@contextmanager
def record_modules() -> Iterator[dict[str, ModuleRecord]]:
    """Collect a :class:`~gptq_hybrid.losses.ModuleRecord` by full module name while the block quantizes.

    Raises:
        IncompatibleError: what is wrapped is gone, or returns something else.
        HybridError: GPTAQ cannot go on with a module.
    """
    from gptqmodel.quantization.gptq import GPTQ

    finalize: Callable[..., Any] | None = getattr(GPTQ, "finalize_hessian", None)
    quantize: Callable[..., Any] | None = getattr(GPTQ, "quantize", None)
    if finalize is None or quantize is None:
        raise moved("GPTQ.finalize_hessian and GPTQ.quantize are expected")
    records: dict[str, ModuleRecord] = {}
    facts: dict[int, _HessianFacts] = {}
    running: set[int] = set()
    lock = threading.Lock()

    @wraps(finalize)
    def inspected_finalize(self: Any, *args: Any, **kwargs: Any) -> Any:
        hessian = finalize(self, *args, **kwargs)
        if id(self) not in facts and getattr(hessian, "ndim", 0) == 2:
            facts[id(self)] = _inspect_hessian(self.module.weight.detach(), hessian)
        return hessian

    with record_damping() as dampings:

        def add(record: ModuleRecord) -> None:
            damping = dampings.pop(record.module, None)
            if damping is not None:
                record = replace(record, damp_asked=damping.configured, floor=damping.floor)
            with lock:
                records[record.module] = record

        @wraps(quantize)
        def recorded_quantize(self: Any, *args: Any, **kwargs: Any) -> Any:
            if (
                id(self) in running
            ):  # After a NaN loss `quantize` calls itself; what it returns is recorded below.
                return quantize(self, *args, **kwargs)
            running.add(id(self))
            try:
                weight = self.module.weight.detach()
                out = quantize(self, *args, **kwargs)
                if not isinstance(out, tuple) or len(out) != 8:
                    raise moved("GPTQ.quantize is expected to return eight values")
                damping = dampings.get(module_name(self))
                floor = damping.floor if damping is not None else 0.0
                add(_record(self, weight, out, facts.get(id(self)), floor))
                return out
            finally:
                running.discard(id(self))
                facts.pop(id(self), None)

        GPTQ.finalize_hessian, GPTQ.quantize = inspected_finalize, recorded_quantize
        try:
            with record_gptaq(add):
                yield records
        finally:
            GPTQ.finalize_hessian, GPTQ.quantize = finalize, quantize
