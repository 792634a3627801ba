"""What is kept of each quantized module, and what the solvers' records share."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch

_ROWS, _COLUMNS = 1024, 2048


@dataclass(frozen=True, slots=True)
class ModuleRecord:
    """One quantized module.

    ``relative_error`` is tr(ΔW H ΔWᵀ) / tr(W H Wᵀ): the squared error of the
    layer's output over its squared output, on the calibration data; None where
    the solver fell back and measured nothing. ``dead_columns`` counts inputs that
    were zero throughout (GPTQ zeroes their weights), ``nonfinite_columns`` those
    that were ever NaN or infinite. ``outcome`` is ``"gptq"``,
    ``"gptaq"`` (its ``loss`` is not comparable, ``relative_error`` is),
    ``"fallback"`` (round-to-nearest) or ``"nan"`` (NaN loss, retried without a Hessian);
    ``reason`` says why it is one of the last two.

    ``damp`` is what the solver ended with, ``damp_asked`` what it was told: more was
    needed where the Hessian was not positive definite. ``floor`` was added to the
    diagonal where no damping sufficed. All three are shares of mean(diag H).
    """

    module: str
    columns: int
    tokens: int
    loss: float | None
    damp: float
    relative_error: float | None
    dead_columns: int
    outcome: str
    reason: str = ""
    damp_asked: float | None = None
    floor: float = 0.0
    nonfinite_columns: int = 0


def module_name(solver: Any) -> str:
    """Full name of the module that gptqmodel's ``solver`` works on."""
    named = getattr(solver, "_named_module", None)
    return getattr(named, "full_name", None) or str(solver.name)


def energy(rows: torch.Tensor, hessian: torch.Tensor, less: torch.Tensor | None = None) -> float:
    """tr(X H Xᵀ) in float32 products and a float64 sum, X being ``rows`` (out × in) without ``less``.

    Of BF16 rows on a GPU by tensor cores, H as a sum of two BF16 parts, which leaves 16 of its bits: 6 TFLOP a
    layer of the 27B for a figure that is read to three digits. (Not in TF32: that is a setting of all threads, and
    the sweep of another module may be at work.)
    """
    import torch

    total = torch.zeros((), dtype=torch.float64, device=hessian.device)
    if (
        less is None
        and rows.dtype == torch.bfloat16
        and rows.is_cuda
        and hessian.is_cuda
        and _has_out_dtype()
    ):
        for start in range(0, hessian.shape[1], _COLUMNS):
            columns = slice(start, start + _COLUMNS)
            parts = in_two_parts(hessian[:, columns])
            for first in range(0, rows.shape[0], _COLUMNS):
                part = rows[first : first + _COLUMNS]
                total += (product(part, *parts) * part[:, columns]).sum(dtype=torch.float64)
        return float(total)
    for start in range(0, rows.shape[0], _ROWS):
        part = rows[start : start + _ROWS].to(device=hessian.device, dtype=torch.float32)
        if less is not None:
            part = part - less[start : start + _ROWS].to(device=hessian.device, dtype=torch.float32)
        total += ((part @ hessian) * part).sum(dtype=torch.float64)
    return float(total)


def in_two_parts(matrix: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """An FP32 matrix as a sum of two of BF16, with 16 bits of it."""
    import torch

    high = matrix.to(torch.bfloat16)
    return high, (matrix - high.float()).to(torch.bfloat16)


def product(rows: torch.Tensor, high: torch.Tensor, low: torch.Tensor) -> torch.Tensor:
    """BF16 ``rows`` times a matrix in two BF16 parts: FP32."""
    return _mm(rows, high).add_(_mm(rows, low))


def _mm(left: torch.Tensor, right: torch.Tensor) -> torch.Tensor:
    import torch

    if left.is_cuda:
        return torch.mm(left, right, out_dtype=torch.float32)
    return left.float() @ right.float()


@cache
def _has_out_dtype() -> bool:
    """Whether this PyTorch (2.8 and later) multiplies 16-bit numbers into FP32 ones."""
    import torch

    return "dtype" in torch.ops.aten.mm.overloads()
