"""Round-to-nearest in 4 or 8 bits with a scale searched for each group.

A scale is tried in both signs, as the range of a value, -8 to 7 in 4 bits, is not symmetric: with the sign of a
group's largest weight turned, that weight may be an 8. Each trial is held against the weights as they come out,
with the scale as it will be stored.
"""

from __future__ import annotations

import torch

# What the largest magnitude of a group is divided by: below 7 the grid is coarse, above 8 the largest weights are
# cut off for the others' sake. Squared error over the weight's, mean of the MTP and output heads of bench/mini
# in groups of 32 (of 128), BF16 scales: these in both signs 1.00, in one sign 1.14 (1.12), the largest over 7 alone
# 1.42 (1.49); 129 steps from 6 to 12 would gain 1.0 % (0.3 %).
# In 8 bits the grid is fine enough for the largest weight.
_DIVISORS = {4: tuple(6.75 + 0.25 * i for i in range(16)), 8: (127.0, 127.5, 128.0)}
# Weights at a time: four float32 temporaries of them are 256 MiB.
_CHUNK = 1 << 24


def quantize(weight: torch.Tensor, group_size: int, bits: int) -> tuple[torch.Tensor, torch.Tensor]:
    """A weight as GPTQ stores it, symmetric, groups along the input in natural order.

    Args:
        weight: ``[out_features, in_features]``, floating.
        group_size: divides ``in_features``; a multiple of 8.
        bits: 4 or 8.

    Returns:
        ``qweight`` int32 ``[in_features * bits / 32, out_features]``, lowest bits first, biased by
        ``2**(bits-1)``; ``scales`` ``[in_features / group_size, out_features]`` in the dtype of ``weight``.

    Raises:
        ValueError: rows that are not of whole groups, or values that are not finite.
    """
    outputs, inputs = weight.shape
    if inputs % group_size or group_size % 8:
        raise ValueError(f"{inputs} inputs are not made of groups of {group_size}")
    words = torch.empty(inputs * bits // 32, outputs, dtype=torch.int32, device=weight.device)
    scales = torch.empty(inputs // group_size, outputs, dtype=weight.dtype, device=weight.device)
    step = max(1, _CHUNK // inputs)
    for first in range(0, outputs, step):
        rows = weight[first : first + step]
        values, found = _rounded(rows.reshape(-1, group_size).float(), weight.dtype, bits)
        columns = slice(first, first + len(rows))
        scales[:, columns] = found.view(len(rows), -1).t()
        words[:, columns] = _packed(values.view(len(rows), inputs), bits).t()
    if not bool(torch.isfinite(scales).all()):
        raise ValueError("its values are not all finite")
    return words, scales


def _rounded(groups: torch.Tensor, dtype: torch.dtype, bits: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Integers around zero ``[groups, size]`` and the scale of each group, in ``dtype``."""
    most = groups.abs().amax(dim=1, keepdim=True)
    best = torch.full_like(most, float("inf"))
    scale = torch.zeros_like(most)
    for divisor in _DIVISORS[bits]:
        size = (most / divisor).to(dtype).float()
        for trial in (size, -size):
            error = (_round(groups, trial, bits) * trial - groups).square_().sum(dim=1, keepdim=True)
            better = error < best
            best = torch.where(better, error, best)
            scale = torch.where(better, trial, scale)
    # A group of zeros keeps a scale of zero; NaN is better than nothing and stays to be seen.
    scale = torch.where(torch.isfinite(most), scale, most)
    return _round(groups, scale, bits).to(torch.int32), scale.to(dtype)


def _round(groups: torch.Tensor, scale: torch.Tensor, bits: int) -> torch.Tensor:
    divided = groups / torch.where(scale == 0, 1.0, scale)
    half = 1 << (bits - 1)
    return divided.round_().clamp_(-half, half - 1)


def _packed(values: torch.Tensor, bits: int) -> torch.Tensor:
    """As many integers a word as fit, along the last dimension, biased by half their range: int32."""
    count = 32 // bits
    lanes = (values + (1 << (bits - 1))).view(len(values), -1, count)
    words = lanes[..., 0].clone()
    for lane in range(1, count):
        words |= lanes[..., lane] << (bits * lane)
    return words
