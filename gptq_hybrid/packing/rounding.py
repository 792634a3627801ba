"""Round to nearest, symmetric, with the scale of each group searched for.

A group is stored as integers from ``-h`` to ``h - 1`` times one scale, with ``h = 2**(bits-1)``. The search chooses
the sign and the size of that scale.

* Sign: there is one more step below zero than above, so the scale takes the sign that puts the group's largest
  weight ``w`` on the long side. Of 514 scales of both signs, that sign alone reaches the best within 0.2 % of the
  squared error in groups of 128 (4 bits).
* Size: the scale ``w / h`` represents the largest weight. A smaller one clips it and rounds the others more finely.
  If ``w`` is the only large one among ``n`` weights, the clipping error ``(w - h * s)**2`` and the rounding error
  ``n * s**2 / 12`` add up to the least at ``w / s = h + n / (12 * h)``. The search tries scales from
  ``w / (0.86 * h)`` to a little beyond that one, 8 % apart, then eight around the best.

It replaced two searches. A: 41 scales of one sign, from 0.6 to 1 times the least that clips nothing (8 bits: 11,
from 0.9). B: 16 scales of both signs, from ``w / 10.5`` to ``w / 6.75`` (8 bits: three, from ``w / 128``). The
table has their squared error over that of this search, for random weights of 5,120 inputs and BF16 scales. Heavy
tails are Student's t with 4 degrees of freedom. Times are for 84 million weights on an H200, and processor time for
10 million on one core of a CPU; those of B include packing.

====  =====  ===========  =====  =====  ===================  ===================
bits  group  weights      A      B      H200: A, B, this     CPU: A, B, this
====  =====  ===========  =====  =====  ===================  ===================
4     32     normal       1.13   1.01   447, 69, 35 ms       0.47, 2.2, 0.15 s
4     32     heavy tails  1.14   1.00   393, 69, 35 ms       0.46, 2.2, 0.17 s
4     128    normal       1.09   1.00   438, 55, 32 ms       0.38, 2.2, 0.12 s
4     128    heavy tails  1.11   1.00   433, 55, 32 ms       0.40, 2.3, 0.13 s
4     5,120  normal       1.02   1.06   396, 53, 71 ms       0.38, 2.1, 0.29 s
4     5,120  heavy tails  1.80   2.09   384, 53, 72 ms       0.36, 2.3, 0.26 s
8     32     normal       1.14   1.07   202, 16, 36 ms       0.20, 0.5, 0.20 s
8     128    normal       1.05   1.02   175, 17, 39 ms       0.21, 0.5, 0.15 s
8     128    heavy tails  1.04   1.02   122, 13, 28 ms       0.15, 0.5, 0.14 s
8     5,120  normal       1.00   1.03   139, 12, 30 ms       0.18, 0.5, 0.11 s
8     5,120  heavy tails  1.01   1.03   118, 12, 27 ms       0.16, 0.5, 0.11 s
====  =====  ===========  =====  =====  ===================  ===================

Checkpoints whose heads were packed with A hold other codes and scales, none of them negative.
"""

from __future__ import annotations

import math

import torch

# Counts the searches so far. Kept results of rounding are those of one search; raise it when numbers change.
SEARCH = 2
# Divisors of ``w / h`` that are tried: powers of `_STEP`, from `_BELOW` steps below 1 to `_BEYOND` times the best
# for a single large weight. Below 1 nothing is clipped and the steps of the grid are wider, which fits one in ten
# groups of 32 normal weights best (4 bits).
_STEP, _BELOW, _BEYOND = 1.08, 2, 1.2
_FINE = 8
# The least positive float16.
_SMALLEST = 2.0**-24
# Weights searched at a time: few enough for a CPU's cache; on a GPU as many as pay (84 million on an H200 take
# 234 ms with 2**20, 31 with 2**23, 29 with 2**24).
_CHUNK_CPU, _CHUNK_GPU = 1 << 20, 1 << 23


def quantize_rtn(
    weight: torch.Tensor,
    bits: int,
    group_size: int,
    *,
    search: bool = True,
    importance: torch.Tensor | None = None,
    scale_dtype: torch.dtype = torch.float16,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Round a weight to codes and scales, each group by itself.

    With ``search``, a group's scale is the one with the least sum of
    ``importance[i] * (w[i] - scale * code[i])**2`` of the 15 to 91 that are tried (see the module).

    Args:
        weight: floating point ``[out_features, in_features]``.
        bits: 2 to 8.
        group_size: inputs that share a scale; -1 for all of a channel.
        search: False takes the least positive scale that clips no weight.
        importance: ``[in_features]``, not negative; the mean square of each input makes the sum the layer's
            expected squared output error, as far as its inputs are uncorrelated. None weighs all alike.
        scale_dtype: what scales are rounded to before codes are chosen. A checkpoint stores float16, vLLM
            casts to the dtype it serves in: with bfloat16, both hold the same value (down to 2**-17).

    Returns:
        uint8 codes ``[out_features, in_features]``, ``2**(bits-1)`` for zero, and scales
        ``[out_features, groups]`` in ``scale_dtype``, of either sign, none of them zero.

    Raises:
        ValueError: a group size that does not divide the inputs; weights that are not finite or too large for
            ``scale_dtype``; importance that is not finite or negative.
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
    half = 1 << (bits - 1)
    codes = torch.empty(out_features, in_features, dtype=torch.uint8, device=weight.device)
    scales = torch.empty(out_features, in_features // size, dtype=scale_dtype, device=weight.device)
    step = max(1, (_CHUNK_CPU if weight.device.type == "cpu" else _CHUNK_GPU) // in_features)
    for start in range(0, out_features, step):
        channels = slice(start, start + step)
        groups = weight[channels].to(torch.float32).unflatten(1, (-1, size))
        if search:
            best = _searched_scales(groups, half, importance, scale_dtype)
        else:
            best = _nonzero(groups.abs().amax(dim=-1, keepdim=True) / (half - 1)).to(scale_dtype)
        scales[channels] = best.squeeze(-1)
        codes[channels] = (_round(groups, best.to(torch.float32), half) + half).flatten(1).to(torch.uint8)
    # Once for all chunks: a question about a chunk makes a GPU wait.
    finite = scales.isfinite().all(dim=1)
    if not bool(finite.all()):
        channel = int((~finite).nonzero()[0])
        raise ValueError(
            f"the weight holds NaN or infinite values, or values too large for {scale_dtype} scales, "
            f"in output channel {channel}"
        )
    return codes, scales


def _searched_scales(
    groups: torch.Tensor, half: int, importance: torch.Tensor | None, dtype: torch.dtype
) -> torch.Tensor:
    """Scales ``[channels, groups, 1]`` in ``dtype`` for weights ``[channels, groups, size]``."""
    largest = groups.gather(-1, groups.abs().argmax(dim=-1, keepdim=True))
    widest = _nonzero(-largest / half)
    best = widest.to(dtype)
    least = torch.full_like(widest, torch.inf)
    coarse, fine = _divisors(groups.shape[-1], half)
    for divisors in (coarse, fine):
        centre = widest if divisors is coarse else best.to(torch.float32)
        for divisor in divisors:
            scale = _nonzero(centre / divisor).to(dtype)
            wide = scale.to(torch.float32)
            error = _round(groups, wide, half).mul_(wide).sub_(groups).square_()
            if importance is not None:
                error *= importance
            total = error.sum(dim=-1, keepdim=True)
            better = total < least
            best = torch.where(better, scale, best)
            least = torch.where(better, total, least)
    return best


def _divisors(size: int, half: int) -> tuple[list[float], list[float]]:
    """Divisors of the scale that makes the largest weight ``-half``, and then of the best scale so far."""
    most = _BEYOND * (1 + size / (12 * half**2))
    coarse = [_STEP**step for step in range(-_BELOW, math.ceil(math.log(most, _STEP)) + 1)]
    # A weight that was rounded before comes back as it was, from the whole range (1) and from a symmetric one.
    coarse.append((half - 1) / half)
    fine = [_STEP ** (2 * (step + 1) / (_FINE + 1) - 1) for step in range(_FINE)]
    return coarse, fine


def _nonzero(scale: torch.Tensor) -> torch.Tensor:
    """Give scales that float16 would round to zero, those of groups of zeros among them, its least value."""
    return torch.where(scale.abs() < _SMALLEST, torch.full_like(scale, _SMALLEST), scale)


def _round(groups: torch.Tensor, scale: torch.Tensor, half: int) -> torch.Tensor:
    return (groups / scale).round_().clamp_(-half, half - 1)
