"""Record how far gptqmodel had to change a Hessian before it could be inverted.

Changes: wraps ``GPTQ.hessian_inverse`` and, where there is one, ``GPTQ._shared_factor_or_local``.
Why: ``hessian_inverse`` raises the damping step by step, then lifts the whole diagonal, and returns only the
    damping it ended with. The lift shows in the diagonal, which stays changed. Modules that share an input take
    their sibling's factor and copy that diagonal instead.
Versions: 6.0.3 to 7.7.0; modules share a factor from 7.4 on, before that each inverts its own Hessian.
Checks: ``hessian_inverse`` exists and returns two values, ``_shared_factor_or_local`` three.
May go: when gptqmodel's log has the lift.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import wraps
from typing import TYPE_CHECKING, Any

from gptq_hybrid.common.errors import HybridError

from .versions import moved

if TYPE_CHECKING:
    import torch


@dataclass(frozen=True, slots=True)
class Damping:
    """``configured``: the damping in the settings. ``floor``: added to the diagonal. Shares of mean(diag H)."""

    configured: float
    floor: float


def module_name(solver: Any) -> str:
    """Return the full name of the module that gptqmodel's ``solver`` works on."""
    module = getattr(solver, "_named_module", None)
    return getattr(module, "full_name", None) or str(solver.name)


@contextmanager
def record_damping() -> Iterator[dict[str, Damping]]:
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
    shared: Callable[..., Any] | None = getattr(GPTQ, "_shared_factor_or_local", None)
    dampings: dict[str, Damping] = {}

    def record(solver: Any, before: torch.Tensor, after: torch.Tensor | None) -> None:
        lift = 0.0
        if after is not None:
            mean = float(before.mean())
            lift = float((after.to(before.device) - before).max()) / mean if mean > 0 else 0.0
        name = module_name(solver)
        # A factor that this module computed for itself and its siblings passes here twice.
        earlier = dampings[name].floor if name in dampings else 0.0
        dampings[name] = Damping(float(solver.qcfg.damp_percent), max(lift, earlier))

    @wraps(inverse)
    def recorded_inverse(self: Any, H: torch.Tensor, *args: Any, **kwargs: Any) -> Any:  # noqa: N803
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
        record(self, before, None if out[0] is None else H.diagonal())
        return out

    def recorded_shared(self: Any, *args: Any, **kwargs: Any) -> Any:
        assert shared is not None
        before = self.H.diagonal().clone()
        out = shared(self, *args, **kwargs)
        if not isinstance(out, tuple) or len(out) != 3:
            raise moved("GPTQ._shared_factor_or_local is expected to return factor, damping and diagonal")
        record(self, before, out[2])
        return out

    GPTQ.hessian_inverse = recorded_inverse
    if shared is not None:
        GPTQ._shared_factor_or_local = wraps(shared)(recorded_shared)
    try:
        yield dampings
    finally:
        GPTQ.hessian_inverse = inverse
        if shared is not None:
            GPTQ._shared_factor_or_local = shared
