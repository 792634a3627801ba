"""The factor of a Hessian's inverse by one decomposition and one inversion of a triangle.

GPTQ needs the upper triangular U with UᵀU = H⁻¹. Let P reverse the order of rows or columns. Then PHP = MMᵀ for a
lower triangular M, so H = RRᵀ with R = PMP upper triangular, and H⁻¹ = R⁻ᵀR⁻¹: U is R⁻¹ = P M⁻¹ P.

Changes: ``GPTQ.hessian_inverse``, on a GPU. A Hessian that needs more damping goes gptqmodel's own way.
Why: gptqmodel takes three steps: H = LLᵀ, H⁻¹ from L, H⁻¹ = UᵀU. Here most of the work is products of matrices,
    and no inverse is decomposed again. The last digits differ.
Versions: 7.6.0; it fits 7.7.0, and was not run there on a GPU.
Checks: the method exists.
May go: when gptqmodel does so.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import wraps
from typing import TYPE_CHECKING, Any

from gptq_hybrid.upstream.versions import moved

if TYPE_CHECKING:
    import torch

# Up to here a triangle is inverted by solving for the identity.
_SMALL = 512


def inverse_factor(hessian: torch.Tensor, damp: float) -> torch.Tensor | None:
    """Return U with UᵀU = (H + damp · mean(diag H) · I)⁻¹; None where that is not positive definite.

    Args:
        hessian: FP32, symmetric, ``[columns, columns]``; not changed.
        damp: a share of the mean of its diagonal.

    Returns:
        FP32, upper triangular.
    """
    import torch

    reversed_ = hessian.flip(0, 1)
    reversed_.diagonal().add_(damp * hessian.diagonal().mean())
    factor, info = torch.linalg.cholesky_ex(reversed_, check_errors=False)
    del reversed_
    if int(info.item()):
        return None
    invert_lower_(factor)
    return factor.flip(0, 1)


def invert_lower_(matrix: torch.Tensor) -> None:
    """Invert a lower triangular matrix, ``[n, n]``, in place; zeros above the diagonal stay zero."""
    import torch

    size = matrix.shape[0]
    if size <= _SMALL:
        identity = torch.eye(size, dtype=matrix.dtype, device=matrix.device)
        matrix.copy_(torch.linalg.solve_triangular(matrix, identity, upper=False))
        return
    half = size // 2
    first, below, last = matrix[:half, :half], matrix[half:, :half], matrix[half:, half:]
    invert_lower_(first)
    invert_lower_(last)
    below.copy_((last @ (below @ first)).neg_())


@contextmanager
def direct_inverse(*, anywhere: bool = False) -> Iterator[None]:
    """Have GPTQ on a GPU (with ``anywhere``, on a CPU too) factor a Hessian's inverse directly.

    Raises:
        IncompatibleError: ``GPTQ.hessian_inverse`` is gone.
    """
    from gptqmodel.quantization.gptq import GPTQ

    original: Callable[..., Any] | None = getattr(GPTQ, "hessian_inverse", None)
    if original is None:
        raise moved("GPTQ.hessian_inverse is expected")

    @wraps(original)
    def hessian_inverse(self: Any, H: torch.Tensor) -> Any:  # noqa: N803
        damp = float(self.qcfg.damp_percent)
        factor = inverse_factor(H, damp) if anywhere or H.is_cuda else None
        return original(self, H) if factor is None else (factor, damp)

    GPTQ.hessian_inverse = hessian_inverse
    try:
        yield
    finally:
        GPTQ.hessian_inverse = original
