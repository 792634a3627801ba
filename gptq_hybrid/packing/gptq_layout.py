"""GPTQ's four tensors of a linear, as gptqmodel and AutoGPTQ store them.

==========  =======  ========================  ================================================
tensor      dtype    shape                     content
==========  =======  ========================  ================================================
qweight     int32    [in * bits / 32, out]     codes, packed along the input
scales      float16  [groups, out]
qzeros      int32    [groups, out * bits / 32]  zero points, packed along the output; format
                                               ``gptq`` stores them minus one, ``gptq_v2`` as is
g_idx       int32    [in]                      group of each input
==========  =======  ========================  ================================================

weight[o, i] = scales[g, o] * (code[i, o] - zero[g, o]) with g = g_idx[i]. Symmetric means zero = 2**(bits-1).
"""

from __future__ import annotations

from typing import Literal

import torch

from .words import pack_words, unpack_words

BITS = (2, 3, 4, 8)
CheckpointFormat = Literal["gptq", "gptq_v2"]


def natural_g_idx(in_features: int, group_size: int, *, device: torch.device | None = None) -> torch.Tensor:
    """Return the ``g_idx`` of groups in natural order: int32 ``[in_features]``, input ``i`` in ``i // group_size``.

    ``group_size`` -1 is one group for all; the last group may be smaller than the others.
    """
    size = in_features if group_size == -1 else group_size
    return (torch.arange(in_features, device=device) // size).to(torch.int32)


def pack(codes: torch.Tensor, scales: torch.Tensor, bits: int) -> dict[str, torch.Tensor]:
    """Pack a symmetric linear in the ``gptq`` (v1) format, groups in natural order.

    Args:
        codes: integer ``[out_features, in_features]``, 0 to ``2**bits - 1``; ``2**(bits-1)`` stands for zero.
        scales: floating point ``[out_features, groups]``; stored in the dtype given.
        bits: 2, 3, 4 or 8.

    Returns:
        ``qweight``, ``scales``, ``qzeros`` and ``g_idx``, contiguous, on the device of ``codes``.

    Raises:
        ValueError: shapes that do not go together, or that do not fill 32-bit words.
    """
    _check_bits(bits)
    out_features, in_features = codes.shape
    groups = scales.shape[1]
    if scales.shape[0] != out_features or in_features % groups:
        raise ValueError(f"scales {list(scales.shape)} do not belong to codes {list(codes.shape)}")
    stored_zero = (1 << (bits - 1)) - 1
    zeros = torch.full((out_features, groups), stored_zero, dtype=torch.uint8, device=codes.device)
    return {
        "qweight": pack_words(codes.t(), bits),
        "scales": scales.t().contiguous(),
        "qzeros": pack_words(zeros, bits).t().contiguous(),
        "g_idx": natural_g_idx(in_features, in_features // groups, device=codes.device),
    }


def dequantize(
    qweight: torch.Tensor,
    scales: torch.Tensor,
    qzeros: torch.Tensor,
    g_idx: torch.Tensor | None,
    bits: int,
    *,
    checkpoint_format: CheckpointFormat = "gptq",
) -> torch.Tensor:
    """Unpack the dense weight of a linear, in float32.

    Args:
        qweight, scales, qzeros: as in the table above; scales in any floating-point dtype. vLLM casts them
            to the dtype it serves in: cast them first to get its weights.
        g_idx: int32 ``[in_features]``, in any order; None for groups in natural order.
        bits: 2, 3, 4 or 8.
        checkpoint_format: how ``qzeros`` are stored.

    Returns:
        float32 ``[out_features, in_features]``, contiguous, on the device of ``qweight``.

    Raises:
        ValueError: shapes that do not go together, or a ``g_idx`` that names a group there is not.
    """
    _check_bits(bits)
    codes = unpack_words(qweight, bits)
    in_features, out_features = codes.shape
    groups = scales.shape[0]
    zeros = unpack_words(qzeros.t(), bits).t()
    if scales.shape[1] != out_features or zeros.shape != scales.shape:
        raise ValueError(
            f"scales {list(scales.shape)} and qzeros {list(qzeros.shape)} do not belong to "
            f"{in_features} inputs and {out_features} outputs in {bits} bits"
        )
    if g_idx is None:
        g_idx = natural_g_idx(in_features, _even_group_size(in_features, groups), device=qweight.device)
    group = g_idx.to(device=qweight.device, dtype=torch.long)
    if group.shape != (in_features,) or int(group.min()) < 0 or int(group.max()) >= groups:
        raise ValueError(
            f"g_idx {list(group.shape)} does not give {in_features} inputs one of {groups} groups"
        )
    # Minus one wraps: an asymmetric zero of 0 is stored as the largest value.
    shift = 1 if checkpoint_format == "gptq" else 0
    points = (zeros.to(torch.int16) + shift) & ((1 << bits) - 1)
    weight = codes.to(torch.float32) - points.to(torch.float32)[group]
    return (weight * scales.to(torch.float32)[group]).t().contiguous()


def dequantize_symmetric(qweight: torch.Tensor, scales: torch.Tensor, bits: int) -> torch.Tensor:
    """Unpack the dense weight of a symmetric linear with groups in natural order.

    What kernels keep of such a linear is enough: no ``qzeros``, no ``g_idx``, scales in the dtype served in.

    Args:
        qweight: int32 ``[in_features * bits / 32, out_features]``.
        scales: ``[groups, out_features]``.
        bits: 2, 3, 4 or 8.

    Returns:
        ``[out_features, in_features]`` in the dtype of ``scales``: one product in float32, rounded once.

    Raises:
        ValueError: the groups do not divide the inputs.
    """
    _check_bits(bits)
    steps = unpack_words(qweight, bits).to(torch.float32).sub_(1 << (bits - 1))
    size = _even_group_size(len(steps), len(scales))
    weight = steps.mul_(scales.to(torch.float32).repeat_interleave(size, dim=0))
    return weight.to(scales.dtype).t().contiguous()


def _even_group_size(in_features: int, groups: int) -> int:
    if in_features % groups:
        raise ValueError(f"{groups} groups do not divide {in_features} inputs")
    return in_features // groups


def _check_bits(bits: int) -> None:
    if bits not in BITS:
        raise ValueError(f"bits must be one of {BITS}, not {bits!r}")
