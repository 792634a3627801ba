"""What GPTQ did to each module, noted while gptqmodel runs.

gptqmodel logs a loss that scales with 1/tokens, rounds it to ten decimals, and
turns failures into a word in that column. The figures here come from the same
solver call: error relative to the layer's output, dead columns, fallbacks.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import wraps
from typing import TYPE_CHECKING, Any

from ._gptaq import record_gptaq
from ._gptqmodel import moved
from ._module_record import ModuleRecord, energy, module_name

if TYPE_CHECKING:
    import torch


@dataclass(slots=True)
class _HessianFacts:
    energy: float
    mean_diagonal: float
    dead_columns: int


def _hessian_facts(weight: torch.Tensor, hessian: torch.Tensor) -> _HessianFacts:
    import torch

    diagonal = hessian.diagonal()
    dead = diagonal == 0
    # GPTQ sets the diagonal of dead columns to 1 before it damps by a share of the mean.
    mean = torch.where(dead, 1.0, diagonal).mean()
    return _HessianFacts(energy(weight, hessian), float(mean), int(dead.sum()))


def _relative_error(
    facts: _HessianFacts, weight: torch.Tensor, quantized: torch.Tensor, loss: float, tokens: int, damp: float
) -> float | None:
    """Error from the solver's own loss.

    The summed loss equals ½ tr(ΔW H_d ΔWᵀ) exactly, H_d being H damped by
    ``damp · mean(diag H)`` (each step of GPTQ adds the rise of that quadratic
    form), so the undamped numerator follows without keeping H.
    """
    if not facts.energy > 0:
        return None
    delta: float = (weight.float() - quantized.to(weight.device).float()).square().sum().item()
    return max(0.0, 2.0 * loss * tokens - damp * facts.mean_diagonal * delta) / facts.energy


@contextmanager
def record_modules() -> Iterator[dict[str, ModuleRecord]]:
    """Collect a :class:`ModuleRecord` by full module name while the block quantizes.

    Wraps ``GPTQ.finalize_hessian``, ``GPTQ.quantize`` and what :func:`record_gptaq` names, and restores all.

    Raises:
        IncompatibleError: one of them is gone, or ``quantize`` returns something else.
    """
    from gptqmodel.quantization.gptq import GPTQ

    finalize: Callable[..., Any] | None = getattr(GPTQ, "finalize_hessian", None)
    quantize: Callable[..., Any] | None = getattr(GPTQ, "quantize", None)
    if finalize is None or quantize is None:
        raise moved("GPTQ.finalize_hessian and GPTQ.quantize are expected")
    records: dict[str, ModuleRecord] = {}
    facts_of: dict[int, _HessianFacts] = {}
    lock = threading.Lock()

    def note(record: ModuleRecord) -> None:
        with lock:
            # A NaN retry calls quantize again from inside quantize: the outer, later note wins.
            records[record.module] = record

    @wraps(finalize)
    def finalize_and_look(self: Any, *args: Any, **kwargs: Any) -> Any:
        hessian = finalize(self, *args, **kwargs)
        if id(self) not in facts_of and getattr(hessian, "ndim", 0) == 2:
            facts_of[id(self)] = _hessian_facts(self.module.weight.detach(), hessian)
        return hessian

    @wraps(quantize)
    def quantize_and_note(self: Any, *args: Any, **kwargs: Any) -> Any:
        weight = self.module.weight.detach()
        out = quantize(self, *args, **kwargs)
        if not isinstance(out, tuple) or len(out) != 8:
            raise moved("GPTQ.quantize is expected to return eight values")
        quantized, _, _, _, _, loss, damp, tokens = out
        facts = facts_of.pop(id(self), None)
        outcome = "gptq"
        if not isinstance(loss, (int, float)):
            outcome = "fallback"
        elif getattr(self.qcfg, "mock_quantization", False):
            outcome = "nan"
        error = None
        if outcome == "gptq" and facts is not None and quantized.shape == weight.shape:
            error = _relative_error(facts, weight, quantized, loss, tokens, damp)
        note(
            ModuleRecord(
                module=module_name(self),
                columns=int(weight.shape[1]),
                tokens=int(tokens),
                loss=float(loss) if outcome == "gptq" else None,
                damp=float(damp),
                relative_error=error,
                dead_columns=facts.dead_columns if facts else 0,
                outcome=outcome,
            )
        )
        return out

    GPTQ.finalize_hessian, GPTQ.quantize = finalize_and_look, quantize_and_note
    try:
        with record_gptaq(note):
            yield records
    finally:
        GPTQ.finalize_hessian, GPTQ.quantize = finalize, quantize
