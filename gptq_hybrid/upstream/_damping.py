"""How far gptqmodel had to change a Hessian before it could be inverted.

``GPTQ.hessian_inverse`` raises the damping step by step, then lifts the whole
diagonal, and returns only the damping it ended with. The lift is seen in the
diagonal, which it leaves changed; modules that share an input and take their
sibling's factor copy that diagonal instead.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import wraps
from typing import TYPE_CHECKING, Any

from gptq_hybrid.common.errors import HybridError

from ._module_record import module_name
from .gptqmodel import moved

if TYPE_CHECKING:
    import torch


@dataclass(frozen=True, slots=True)
class Damping:
    """``asked``: the damping in the settings. ``floor``: added to every diagonal entry.

    Both are shares of mean(diag H).
    """

    asked: float
    floor: float


@contextmanager
def note_damping() -> Iterator[dict[str, Damping]]:
    """Collect a :class:`Damping` by full module name while the block quantizes.

    A module whose Hessian could not be inverted at all has no floor: it was not used.

    Raises:
        IncompatibleError: ``GPTQ.hessian_inverse`` is gone, or returns something else.
        HybridError: the Hessian of a module that GPTAQ works on cannot be inverted. GPTAQ has no fallback.
    """
    from gptqmodel.quantization.gptq import GPTQ

    inverse: Callable[..., Any] | None = getattr(GPTQ, "hessian_inverse", None)
    if inverse is None:
        raise moved("GPTQ.hessian_inverse is expected")
    # From 7.4 on; before, every module inverted its own.
    shared: Callable[..., Any] | None = getattr(GPTQ, "_shared_factor_or_local", None)
    found: dict[str, Damping] = {}

    def note(solver: Any, before: torch.Tensor, after: torch.Tensor | None) -> None:
        lift = 0.0
        if after is not None:
            mean = float(before.mean())
            lift = float((after.to(before.device) - before).max()) / mean if mean > 0 else 0.0
        name = module_name(solver)
        known = found.get(name)
        # A factor that this module computed for itself and its siblings is seen twice.
        floor = max(lift, known.floor if known is not None else 0.0)
        found[name] = Damping(float(solver.qcfg.damp_percent), floor)

    @wraps(inverse)
    def inverse_and_note(self: Any, H: torch.Tensor, *args: Any, **kwargs: Any) -> Any:  # noqa: N803
        before = H.diagonal().clone()
        out = inverse(self, H, *args, **kwargs)
        if not isinstance(out, tuple) or len(out) != 2:
            raise moved("GPTQ.hessian_inverse is expected to return a factor and a damping")
        if out[0] is None and getattr(self.qcfg, "gptaq", None) is not None:
            what = "is not positive definite" if before.isfinite().all() else "holds NaN or infinities"
            raise HybridError(
                f"{module_name(self)}: the Hessian {what}, and GPTAQ cannot go on without",
                remedy="Use more, or more varied, calibration data, or a recipe without `gptaq`.",
            )
        note(self, before, None if out[0] is None else H.diagonal())
        return out

    GPTQ.hessian_inverse = inverse_and_note
    if shared is not None:
        GPTQ._shared_factor_or_local = _shared(shared, note)
    try:
        yield found
    finally:
        GPTQ.hessian_inverse = inverse
        if shared is not None:
            GPTQ._shared_factor_or_local = shared


def _shared(original: Callable[..., Any], note: Callable[..., None]) -> Callable[..., Any]:
    @wraps(original)
    def shared_and_note(self: Any, *args: Any, **kwargs: Any) -> Any:
        before = self.H.diagonal().clone()
        out = original(self, *args, **kwargs)
        if not isinstance(out, tuple) or len(out) != 3:
            raise moved("GPTQ._shared_factor_or_local is expected to return factor, damping and diagonal")
        note(self, before, out[2])
        return out

    return shared_and_note
