"""GEMMs in e4m3, vLLM's and PyTorch's, and vLLM's quantization of rows. Its ops are those of 0.19.1 to 0.33.0."""

from __future__ import annotations

from functools import cache
from typing import Literal

import torch

from vllm_qwen36_plugin.errors import CompatError
from vllm_qwen36_plugin.log import logger

# ``vllm``: CUTLASS, as vLLM builds it. ``torch``: what `torch._scaled_mm` takes for a scale a row and a column;
# cuBLAS on Hopper.
Gemm = Literal["vllm", "torch"]
_OPS = ("cutlass_scaled_mm", "dynamic_per_token_scaled_fp8_quant")


def check() -> None:
    """Raises:
    CompatError: this build of vLLM lacks one of the ops.
    """
    for name in _OPS:
        if not hasattr(torch.ops._C, name):
            raise CompatError(f"vLLM has no torch.ops._C.{name}")


def supported(capability: tuple[int, int]) -> bool:
    """Whether the GPU multiplies e4m3: Ada (8.9) and later."""
    return capability >= (8, 9)


def quantize_rows(x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """``x`` ``[m, k]`` in e4m3 and a float32 scale a row, ``[m, 1]``.

    For drafts, whose model torch.compile traces; `prefill.activations` is faster, and inside an op.
    """
    rows = torch.empty(x.shape, dtype=torch.float8_e4m3fn, device=x.device)
    scales = torch.empty(x.shape[0], 1, dtype=torch.float32, device=x.device)
    torch.ops._C.dynamic_per_token_scaled_fp8_quant(rows, x, scales, None)
    return rows, scales


def multiply(
    out: torch.Tensor,
    rows: torch.Tensor,
    columns: torch.Tensor,
    row_scales: torch.Tensor,
    column_scales: torch.Tensor,
    gemm: Gemm = "vllm",
) -> None:
    """``out = (rows * row_scales) @ (columns * column_scales)``.

    Args:
        out: ``[m, n]``, BF16 or FP16; may be some columns of a wider matrix.
        rows: e4m3 ``[m, k]``.
        columns: e4m3 ``[k, n]`` with k contiguous.
        row_scales: float32 ``[m, 1]``.
        column_scales: float32 ``[1, n]``; for vLLM's ``[n, 1]`` too.
        gemm: which; one that `works`. Both take the hardware's fast accumulation.
    """
    if gemm == "torch":
        torch._scaled_mm(
            rows,
            columns,
            scale_a=row_scales,
            scale_b=column_scales,
            out_dtype=out.dtype,
            use_fast_accum=True,
            out=out,
        )
    elif out.is_contiguous() or writes_strided(out.device, out.dtype, gemm):
        torch.ops._C.cutlass_scaled_mm(out, rows, columns, row_scales, column_scales, None)
    else:
        whole = torch.empty(out.shape, dtype=out.dtype, device=out.device)
        torch.ops._C.cutlass_scaled_mm(whole, rows, columns, row_scales, column_scales, None)
        copy_columns(out, whole)


def copy_columns(out: torch.Tensor, whole: torch.Tensor) -> None:
    """``out.copy_(whole)`` for two matrices of one shape and dtype, ``out`` being some columns of a wider one.

    PyTorch copies such a block one element at a time: on an H200 17,408 of 34,816 columns of 16 bits at 1.7 TB/s
    read and written. Where rows begin and end at multiples of 16 bytes it is told that elements have 16: an eighth
    of the loads and stores, at 4.2 TB/s (0.55 ms for 1.4 in a first token of 1,024 tokens, 16 layers,
    bench/prefill).
    """
    if _of_sixteens(out) and _of_sixteens(whole):
        out, whole = out.view(torch.complex128), whole.view(torch.complex128)
    out.copy_(whole)


def _of_sixteens(block: torch.Tensor) -> bool:
    """Whether a matrix can be viewed as elements of 16 bytes, each at an address that allows to load it at once."""
    stride, along = block.stride()
    size = block.element_size()
    # A view needs the offset besides: a storage may begin anywhere.
    places = block.data_ptr() | size * (block.storage_offset() | stride | block.shape[1])
    return along == 1 and not places & 15


@cache
def writes_strided(device: torch.device, dtype: torch.dtype, gemm: Gemm) -> bool:
    """Whether a GEMM leaves the rest of a wider matrix alone when told to write some columns of it.

    vLLM 0.26.0's kernels for Hopper write as if the columns were all there are. Tried once a GPU and type of
    result, on 64 rows.
    """
    # vLLM's default dtype is the model's while it loads one.
    rows = torch.ones(64, 64, dtype=torch.float32, device=device).to(torch.float8_e4m3fn)
    scales = torch.ones(64, 1, dtype=torch.float32, device=device)
    wide = torch.zeros(64, 128, dtype=dtype, device=device)
    if gemm == "torch":
        multiply(wide[:, 64:], rows, rows.t(), scales, scales.t(), gemm)
    else:
        torch.ops._C.cutlass_scaled_mm(wide[:, 64:], rows, rows.t(), scales, scales, None)
    expected = torch.zeros_like(wide)
    expected[:, 64:] = 64
    return bool(torch.equal(wide, expected))


@cache
def works(device: torch.device, dtype: torch.dtype, gemm: Gemm) -> bool:
    """Whether a GEMM is there for this GPU and results of this type. Not before `check`.

    PyTorch's is a private function: it is taken where it does what is expected of it, parts of a wider matrix
    included (tried once; 2.11 does on an H200, in BF16 and FP16).
    """
    if gemm == "vllm":
        return True
    try:
        return writes_strided(device, dtype, gemm)
    except (AttributeError, TypeError, RuntimeError) as reason:
        logger.debug("vllm-qwen36-plugin: no GEMM in e4m3 by PyTorch: %s", reason)
        return False
