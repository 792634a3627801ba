"""W4A16 weights of one module for Marlin and Machete, called as vLLM 0.26's linear kernels call them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch

from vllm_qwen36_plugin.act_order.sorting import natural_order, row_order, sort_rows

Gemm = Callable[[torch.Tensor], torch.Tensor]
GROUP, BITS = 128, 4


@dataclass(frozen=True, slots=True)
class Packed:
    """As GPTQ stores it: qweight int32 ``[k/8, n]``, scales BF16 ``[k/128, n]``, g_idx int32 ``[k]``."""

    qweight: torch.Tensor
    scales: torch.Tensor
    g_idx: torch.Tensor

    @property
    def shape(self) -> tuple[int, int]:
        """(k, n)."""
        return self.qweight.shape[0] * 32 // BITS, self.qweight.shape[1]


def random_g_idx(k: int, seed: int = 0) -> torch.Tensor:
    """A random act order: natural order, permuted. int32 ``[k]`` on the CPU."""
    generator = torch.Generator().manual_seed(seed + k)
    return natural_order(k, GROUP)[torch.randperm(k, generator=generator)]


def random_packed(k: int, n: int, device: str) -> Packed:
    qweight = torch.empty(k * BITS // 32, n, dtype=torch.int32, device=device).random_(-(2**31), 2**31)
    scales = torch.empty(k // GROUP, n, device=device).uniform_(1e-3, 1e-2).to(torch.bfloat16)
    return Packed(qweight, scales, random_g_idx(k).to(device))


def dequantized(weight: Packed) -> torch.Tensor:
    """float32 ``[k, n]``, rows as stored: (value - 8) * scale of the row's group."""
    k, n = weight.shape
    shifts = torch.arange(0, 32, BITS, dtype=torch.int32, device=weight.qweight.device)
    values = ((weight.qweight[:, None, :] >> shifts[None, :, None]) & 15).reshape(k, n)
    return (values - 8).float() * weight.scales.float()[weight.g_idx.long()]


def order_of(weight: Packed) -> torch.Tensor:
    """The plugin's order of the rows, int32 ``[k]`` on the weight's device."""
    order = row_order(weight.g_idx, GROUP)
    if order is None:
        raise ValueError("a random permutation that permutes nothing")
    return order.to(weight.qweight.device)


def rows_sorted(weight: Packed) -> torch.Tensor:
    """qweight with its rows sorted by the plugin's own code."""
    copy = weight.qweight.clone()
    sort_rows(copy, order_of(weight), BITS)
    return copy


def marlin(weight: Packed, workspace: torch.Tensor, *, act_order: bool) -> Gemm:
    """`MarlinLinearKernel` of vLLM up to 0.29: repack, permuted scales, one call a GEMM.

    With ``act_order`` as it is with ``has_g_idx`` (and all of k on one card, so ``is_k_full``), else on rows that
    the plugin sorted.
    """
    from vllm import _custom_ops as ops
    from vllm.model_executor.layers.quantization.utils import marlin_utils as utils
    from vllm.scalar_type import scalar_types

    device = weight.qweight.device
    k, n = weight.shape
    empty = utils.marlin_make_empty_g_idx(device)
    g_idx, perm = utils.marlin_sort_g_idx(weight.g_idx) if act_order else (empty, empty)
    qweight = weight.qweight if act_order else rows_sorted(weight)
    packed = ops.gptq_marlin_repack(qweight.contiguous(), perm=perm, size_k=k, size_n=n, num_bits=BITS)
    scales = utils.marlin_permute_scales(weight.scales, size_k=k, size_n=n, group_size=GROUP)
    full = utils.marlin_is_k_full(act_order, False)

    def call(x: torch.Tensor) -> torch.Tensor:
        return utils.apply_gptq_marlin_linear(
            input=x,
            weight=packed,
            weight_scale=scales,
            weight_zp=empty,
            g_idx=g_idx,
            g_idx_sort_indices=perm,
            workspace=workspace,
            wtype=scalar_types.uint4b8,
            input_size_per_partition=k,
            output_size_per_partition=n,
            is_k_full=full,
            input_dtype=torch.bfloat16,
        )

    return call


def marlin_workspace() -> torch.Tensor:
    """The locks of Marlin's reduction, on the current card."""
    from vllm.model_executor.layers.quantization.utils.marlin_utils import marlin_make_workspace_new

    return marlin_make_workspace_new(torch.device("cuda", torch.cuda.current_device()))


def machete(weight: Packed) -> Gemm | None:
    """`MacheteLinearKernel` on sorted rows; None where the card or the build has none."""
    from vllm import _custom_ops as ops
    from vllm.scalar_type import scalar_types

    if torch.cuda.get_device_capability() != (9, 0) or not hasattr(torch.ops._C, "machete_mm"):
        return None
    kind: Any = scalar_types.uint4b8
    packed = ops.machete_prepack_B(
        rows_sorted(weight).t().contiguous().t(),
        a_type=torch.bfloat16,
        b_type=kind,
        group_scales_type=torch.bfloat16,
    )

    def call(x: torch.Tensor) -> torch.Tensor:
        return ops.machete_mm(
            a=x,
            b_q=packed,
            b_type=kind,
            b_group_zeros=None,
            b_group_scales=weight.scales,
            b_group_size=GROUP,
        )

    return call


def relative_error(found: torch.Tensor, expected: torch.Tensor) -> float:
    """Largest difference over the largest expected value."""
    expected = expected.float()
    return float((found.float() - expected).abs().max() / expected.abs().max())
