"""Round to nearest, symmetric, with the scale of each group searched for."""

from __future__ import annotations

import torch

# Scales tried, as shares of the one at which the largest weight just fits: least share and number, by bits.
# Clipping the largest weights pays at 4 bits (a quarter of the squared error, on a trained output head), at 8
# it gains 3 %, most of it near 1.
_FEW_BITS, _MANY_BITS = (0.6, 41), (0.9, 11)
# The least positive float16.
_SMALLEST = 2.0**-24
# Elements searched at a time: few enough for a CPU's cache, enough to keep a GPU busy.
_CHUNK = 1 << 20


def quantize_rtn(
    weight: torch.Tensor,
    bits: int,
    group_size: int,
    *,
    search: bool = True,
    importance: torch.Tensor | None = None,
    scale_dtype: torch.dtype = torch.float16,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Codes and scales of a weight, each group by itself.

    With ``search``, a group's scale is the one with the least sum of
    ``importance[i] * (w[i] - scale * code[i])**2`` among 41, from 0.6 to 1 times the scale at which its largest
    magnitude is representable (with more than 5 bits 11, from 0.9).

    Args:
        weight: floating point ``[out_features, in_features]``.
        bits: 2 to 8.
        group_size: inputs that share a scale; -1 for all of a row.
        search: False takes the largest of those scales.
        importance: ``[in_features]``, not negative; the mean square of each input makes the sum the layer's
            expected squared output error, as far as its inputs are uncorrelated. None weighs all alike.
        scale_dtype: what scales are rounded to before codes are chosen. A checkpoint stores float16, vLLM
            casts to the dtype it serves in: with bfloat16, both hold the same value (down to 2**-17).

    Returns:
        uint8 codes ``[out_features, in_features]``, ``2**(bits-1)`` for zero, and scales
        ``[out_features, groups]`` in ``scale_dtype``, none of them zero.

    Raises:
        ValueError: a group size that does not divide the inputs, weights or importance that are not finite.
    """
    out_features, in_features = weight.shape
    size = in_features if group_size == -1 else group_size
    if not 2 <= bits <= 8 or size < 1 or in_features % size:
        raise ValueError(f"{bits} bits in groups of {group_size} do not go with {in_features} inputs")
    if importance is not None:
        importance = importance.to(device=weight.device, dtype=torch.float32)
        if importance.shape != (in_features,) or not bool(((importance >= 0) & importance.isfinite()).all()):
            raise ValueError(f"importance must be {in_features} finite values, none of them negative")
        importance = importance.view(-1, size)
    codes = torch.empty(out_features, in_features, dtype=torch.uint8, device=weight.device)
    scales = torch.empty(out_features, in_features // size, dtype=scale_dtype, device=weight.device)
    rows = max(1, _CHUNK // in_features)
    shares = _shares(bits) if search else [1.0]
    for start in range(0, out_features, rows):
        part = weight[start : start + rows].to(torch.float32)
        if not bool(part.isfinite().all()):
            raise ValueError(
                f"the weight holds NaN or infinite values in rows {start} to {start + len(part) - 1}"
            )
        groups = part.view(len(part), -1, size)
        found = _best_scales(groups, bits, importance, scale_dtype, shares)
        scales[start : start + rows] = found
        rounded = _codes(groups, found.to(torch.float32).unsqueeze(-1), bits) + (1 << (bits - 1))
        codes[start : start + rows] = rounded.view(len(part), in_features).to(torch.uint8)
    return codes, scales


def _shares(bits: int) -> list[float]:
    least, trials = _FEW_BITS if bits < 6 else _MANY_BITS
    return [1 - (1 - least) * trial / (trials - 1) for trial in range(trials)]


def _best_scales(
    groups: torch.Tensor, bits: int, importance: torch.Tensor | None, dtype: torch.dtype, shares: list[float]
) -> torch.Tensor:
    """Scales ``[rows, groups]`` in ``dtype`` for weights ``[rows, groups, size]``."""
    largest = groups.abs().amax(dim=-1) / ((1 << (bits - 1)) - 1)
    # Groups of zeros, or of what float16 scales cannot tell from zero: any scale will do, but none of zero.
    largest = torch.where(largest < _SMALLEST, torch.full_like(largest, 2.0**-10), largest)
    best = largest.to(dtype)
    least = torch.full_like(largest, torch.inf)
    for share in shares:
        scale = (largest * share).clamp_min(_SMALLEST).to(dtype)
        wide = scale.to(torch.float32).unsqueeze(-1)
        error = (groups - _codes(groups, wide, bits) * wide).square_()
        if importance is not None:
            error *= importance
        total = error.sum(dim=-1)
        better = total < least
        best = torch.where(better, scale, best)
        least = torch.where(better, total, least)
    return best


def _codes(groups: torch.Tensor, scale: torch.Tensor, bits: int) -> torch.Tensor:
    half = 1 << (bits - 1)
    return (groups / scale).round_().clamp_(-half, half - 1)
