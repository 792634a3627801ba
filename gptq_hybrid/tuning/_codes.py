"""Codes and scales of a linear from sums over its inputs: GPTQ, then scales and codes refined in turn."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from gptq_hybrid.packing import quantize_rtn

# Columns that are rounded one after the other before the rest is updated by one product.
_BLOCK = 128
_DAMP = 0.01
_ROUNDS = 3


@dataclass(frozen=True, slots=True)
class Rounded:
    """A linear in codes, as the file will hold it.

    Attributes:
        codes: uint8 ``[out_features, in_features]``, with their zero point.
        scales: BF16 numbers, float32 ``[out_features, groups]``.
        error: squared error of all outputs, in units of an input's mean square, summed over tokens.
    """

    codes: torch.Tensor
    scales: torch.Tensor
    error: float

    def dense(self, bits: int) -> torch.Tensor:
        """Return the weight, float32 ``[out_features, in_features]``."""
        groups = (self.codes.float() - (1 << (bits - 1))).unflatten(1, (self.scales.shape[1], -1))
        return (groups * self.scales[:, :, None]).flatten(1)


def best_weight(
    weight: torch.Tensor, hessian: torch.Tensor, products: torch.Tensor, damp: float = _DAMP
) -> torch.Tensor:
    """Return the dense weight whose outputs come nearest to the targets, with a pull to ``weight``.

    It minimizes ``|V X - T|² + d |V - W|²`` with ``d`` a share of the mean square of an input, so
    ``V = W + (T Xᵀ - W X Xᵀ) (X Xᵀ + d)⁻¹``.

    Args:
        weight: W, float32 ``[out_features, in_features]``.
        hessian: ``X Xᵀ``, float32 ``[in_features, in_features]``, X the inputs that the linear will see.
        products: ``T Xᵀ``, float32 ``[out_features, in_features]``, T the outputs it should have.
    """
    damped = hessian.clone()
    damped.diagonal().add_(damp * hessian.diagonal().mean())
    factor = torch.linalg.cholesky(damped)
    return weight + torch.cholesky_solve((products - weight @ hessian).t(), factor).t()


def round_to(weight: torch.Tensor, hessian: torch.Tensor, bits: int, group_size: int) -> Rounded:
    """Round ``weight`` so that ``tr((Q - W) H (Q - W)ᵀ)`` is small.

    GPTQ with act order and static groups (arXiv 2210.17323) gives the first codes. Then scales are solved for
    with codes fixed (least squares, a row at a time), and codes are moved with scales fixed (coordinate descent,
    a column at a time), in turn. Of each row the best round is taken.

    Args:
        weight: float32 ``[out_features, in_features]``.
        hessian: H, float32 ``[in_features, in_features]``, of any unit.
        bits, group_size: of the result; groups in natural order.
    """
    hessian = hessian / hessian.diagonal().mean().clamp_min(1e-30)
    # An input that is always zero would leave its codes undefined.
    hessian.diagonal().add_(1e-4)
    _, scales = quantize_rtn(
        weight, bits, group_size, importance=hessian.diagonal(), scale_dtype=torch.bfloat16
    )
    scales = scales.float()
    half = 1 << (bits - 1)
    codes = _gptq(weight, hessian, scales, half, group_size)
    codes = _descend(weight, hessian, codes, scales, half, group_size)
    best, least = (codes, scales), _errors(weight, hessian, codes, scales)
    for _ in range(_ROUNDS):
        scales = _solve_scales(weight, hessian, codes, scales)
        codes = _descend(weight, hessian, codes, scales, half, group_size)
        errors = _errors(weight, hessian, codes, scales)
        better = (errors < least)[:, None]
        best = torch.where(better, codes, best[0]), torch.where(better, scales, best[1])
        least = torch.minimum(errors, least)
    return Rounded((best[0] + half).to(torch.uint8), best[1], float(least.sum()))


def _spread(scales: torch.Tensor, size: int) -> torch.Tensor:
    return scales.repeat_interleave(size, dim=1)


def _errors(
    weight: torch.Tensor, hessian: torch.Tensor, codes: torch.Tensor, scales: torch.Tensor
) -> torch.Tensor:
    """Return the error of each row."""
    off = codes * _spread(scales, codes.shape[1] // scales.shape[1]) - weight
    return ((off @ hessian) * off).sum(1)


def _gptq(
    weight: torch.Tensor, hessian: torch.Tensor, scales: torch.Tensor, half: int, size: int
) -> torch.Tensor:
    order = hessian.diagonal().argsort(descending=True)
    left = weight[:, order].clone()
    steps = _spread(scales, size)[:, order]
    damped = hessian[order][:, order]
    damped.diagonal().add_(_DAMP * damped.diagonal().mean())
    inverse = torch.cholesky_inverse(torch.linalg.cholesky(damped))
    factor = torch.linalg.cholesky(inverse, upper=True)
    codes = torch.empty_like(left)
    for start in range(0, left.shape[1], _BLOCK):
        end = min(start + _BLOCK, left.shape[1])
        errors = torch.empty_like(left[:, start:end])
        for column in range(start, end):
            code = (left[:, column] / steps[:, column]).round_().clamp_(-half, half - 1)
            codes[:, column] = code
            error = (left[:, column] - code * steps[:, column]) / factor[column, column]
            left[:, column:end] -= error[:, None] * factor[column, column:end]
            errors[:, column - start] = error
        left[:, end:] -= errors @ factor[start:end, end:]
    out = torch.empty_like(codes)
    out[:, order] = codes
    return out


def _descend(
    weight: torch.Tensor,
    hessian: torch.Tensor,
    codes: torch.Tensor,
    scales: torch.Tensor,
    half: int,
    size: int,
) -> torch.Tensor:
    """Move each code to its best value given all others, twice through all columns."""
    codes, steps = codes.clone(), _spread(scales, size)
    diagonal = hessian.diagonal()
    flow = (codes * steps - weight) @ hessian
    for start in [*range(0, codes.shape[1], _BLOCK)] * 2:
        end = min(start + _BLOCK, codes.shape[1])
        part, block = flow[:, start:end].clone(), hessian[start:end, start:end]
        moved = torch.empty_like(part)
        for column in range(start, end):
            step = steps[:, column]
            wanted = codes[:, column] - part[:, column - start] / (diagonal[column] * step)
            code = wanted.round_().clamp_(-half, half - 1)
            change = (code - codes[:, column]) * step
            codes[:, column] = code
            part += change[:, None] * block[column - start]
            moved[:, column - start] = change
        flow += moved @ hessian[start:end]
    return codes


def _solve_scales(
    weight: torch.Tensor, hessian: torch.Tensor, codes: torch.Tensor, scales: torch.Tensor
) -> torch.Tensor:
    """Return the scales of least error with these codes, as BF16 numbers."""
    groups = scales.shape[1]
    parts = codes.unflatten(1, (groups, -1))
    wide = torch.zeros(len(codes), groups, groups, device=codes.device)
    for group in range(groups):
        rows = slice(group * parts.shape[2], (group + 1) * parts.shape[2])
        wide[:, group] = ((parts[:, group] @ hessian[rows]).unflatten(1, (groups, -1)) * parts).sum(-1)
    aim = ((weight @ hessian).unflatten(1, (groups, -1)) * parts).sum(-1)
    ridge = 1e-6 * wide.diagonal(dim1=1, dim2=2).mean(1).clamp_min(1e-20)
    wide = wide + ridge[:, None, None] * torch.eye(groups, device=codes.device)
    # A pull to where they were keeps groups without a code defined.
    solved = torch.linalg.solve(wide, (aim + ridge[:, None] * scales)[..., None])[..., 0]
    solved = solved.bfloat16().float()
    sound = solved.isfinite() & (solved.abs() > 2.0**-17) & (solved.sign() == scales.sign())
    return torch.where(sound, solved, scales)
