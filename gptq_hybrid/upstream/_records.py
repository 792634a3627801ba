"""What GPTQ did to each module, noted while gptqmodel runs.

gptqmodel logs a loss that scales with 1/tokens, rounds it to ten decimals, and
turns failures into a word in that column. The figures here come from the same
solver call: error relative to the layer's output, dead columns, fallbacks.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import wraps
from typing import TYPE_CHECKING, Any

from ._damping import note_damping
from ._gptaq import record_gptaq
from ._module_record import ModuleRecord, energy, module_name
from .gptqmodel import moved

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


def _hessian_facts(weight: torch.Tensor, hessian: torch.Tensor) -> _HessianFacts:
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
    """Error from the solver's own loss.

    The summed loss equals ½ tr(ΔW H_d ΔWᵀ) exactly, H_d being H with
    ``floor · mean(diag H)`` on its diagonal, damped by ``damp`` times the mean of that
    (each step of GPTQ adds the rise of that quadratic form), so the undamped
    numerator follows without keeping H. Weights of dead columns are zeroed
    before the solver starts and are no part of ΔW there.
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


@contextmanager
def record_modules() -> Iterator[dict[str, ModuleRecord]]:
    """Collect a :class:`ModuleRecord` by full module name while the block quantizes.

    Wraps ``GPTQ.finalize_hessian``, ``GPTQ.quantize`` and what :func:`note_damping` and :func:`record_gptaq`
    name, and restores all.

    Raises:
        IncompatibleError: one of them is gone, or returns something else.
        HybridError: GPTAQ cannot go on with a module.
    """
    from gptqmodel.quantization.gptq import GPTQ

    finalize: Callable[..., Any] | None = getattr(GPTQ, "finalize_hessian", None)
    quantize: Callable[..., Any] | None = getattr(GPTQ, "quantize", None)
    if finalize is None or quantize is None:
        raise moved("GPTQ.finalize_hessian and GPTQ.quantize are expected")
    records: dict[str, ModuleRecord] = {}
    facts_of: dict[int, _HessianFacts] = {}
    running: set[int] = set()
    lock = threading.Lock()

    @wraps(finalize)
    def finalize_and_look(self: Any, *args: Any, **kwargs: Any) -> Any:
        hessian = finalize(self, *args, **kwargs)
        if id(self) not in facts_of and getattr(hessian, "ndim", 0) == 2:
            facts_of[id(self)] = _hessian_facts(self.module.weight.detach(), hessian)
        return hessian

    def look(solver: Any, weight: torch.Tensor, out: tuple[Any, ...], floor: float) -> ModuleRecord:
        quantized, _, _, _, _, loss, damp, tokens = out
        facts = facts_of.get(id(solver))
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
            nonfinite_columns=facts.nonfinite_columns if facts else 0,
        )

    with note_damping() as damped:

        def note(record: ModuleRecord) -> None:
            damping = damped.pop(record.module, None)
            if damping is not None:
                record = replace(record, damp_asked=damping.asked, floor=damping.floor)
            with lock:
                records[record.module] = record

        @wraps(quantize)
        def quantize_and_note(self: Any, *args: Any, **kwargs: Any) -> Any:
            if id(self) in running:  # a NaN loss: `quantize` calls itself, and what it returns is seen below
                return quantize(self, *args, **kwargs)
            running.add(id(self))
            try:
                weight = self.module.weight.detach()
                out = quantize(self, *args, **kwargs)
                if not isinstance(out, tuple) or len(out) != 8:
                    raise moved("GPTQ.quantize is expected to return eight values")
                damping = damped.get(module_name(self))
                note(look(self, weight, out, damping.floor if damping is not None else 0.0))
                return out
            finally:
                running.discard(id(self))
                facts_of.pop(id(self), None)

        GPTQ.finalize_hessian, GPTQ.quantize = finalize_and_look, quantize_and_note
        try:
            with record_gptaq(note):
                yield records
        finally:
            GPTQ.finalize_hessian, GPTQ.quantize = finalize, quantize
