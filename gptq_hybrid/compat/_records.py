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

from ._gptqmodel import moved

if TYPE_CHECKING:
    import torch

_ENERGY_ROWS = 1024


@dataclass(frozen=True, slots=True)
class ModuleRecord:
    """One quantized module.

    ``relative_error`` is tr(ΔW H ΔWᵀ) / tr(W H Wᵀ): the squared error of the
    layer's output over its squared output, on the calibration data; None where
    the solver fell back and measured nothing. ``dead_columns`` counts inputs that
    were zero throughout (GPTQ zeroes their weights). ``outcome`` is ``"gptq"``,
    ``"fallback"`` (round-to-nearest) or ``"nan"`` (NaN loss, retried without a Hessian).
    """

    module: str
    columns: int
    tokens: int
    loss: float | None
    damp: float
    relative_error: float | None
    dead_columns: int
    outcome: str


@dataclass(slots=True)
class _HessianFacts:
    energy: float
    mean_diagonal: float
    dead_columns: int


def _hessian_facts(weight: torch.Tensor, hessian: torch.Tensor) -> _HessianFacts:
    import torch

    diagonal = hessian.diagonal()
    dead = diagonal == 0
    energy = torch.zeros((), dtype=torch.float64, device=hessian.device)
    for start in range(0, weight.shape[0], _ENERGY_ROWS):
        rows = weight[start : start + _ENERGY_ROWS].to(device=hessian.device, dtype=torch.float32)
        energy += ((rows @ hessian) * rows).sum(dtype=torch.float64)
    # GPTQ sets the diagonal of dead columns to 1 before it damps by a share of the mean.
    mean = torch.where(dead, 1.0, diagonal).mean()
    return _HessianFacts(float(energy), float(mean), int(dead.sum()))


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

    Wraps ``GPTQ.finalize_hessian`` and ``GPTQ.quantize`` and restores both.

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
        named = getattr(self, "_named_module", None)
        name = getattr(named, "full_name", None) or self.name
        with lock:
            # A NaN retry calls quantize again from inside quantize: the outer, later note wins.
            records[name] = ModuleRecord(
                module=name,
                columns=int(weight.shape[1]),
                tokens=int(tokens),
                loss=float(loss) if outcome == "gptq" else None,
                damp=float(damp),
                relative_error=error,
                dead_columns=facts.dead_columns if facts else 0,
                outcome=outcome,
            )
        return out

    GPTQ.finalize_hessian, GPTQ.quantize = finalize_and_look, quantize_and_note
    try:
        yield records
    finally:
        GPTQ.finalize_hessian, GPTQ.quantize = finalize, quantize
