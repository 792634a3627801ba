"""GEMMs in e4m3, vLLM's and PyTorch's, and vLLM's quantization of tokens.

Changes: nothing; calls two of vLLM's ops, and PyTorch's ``torch._scaled_mm``.
Why: none of these has a Python interface that writes into part of a result.
Versions: vLLM's ops are the same in 0.19.1 to 0.33.0; ``torch._scaled_mm`` was tried in PyTorch 2.11.
Checks: vLLM's ops exist; each GEMM is tried on 64 tokens, parts of a wider result included.
May go: when vLLM's GEMM writes strided results on every GPU.
"""

from __future__ import annotations

from functools import cache
from typing import Literal

import torch
from packaging.version import Version

from vllm_qwen36_plugin.errors import CompatError
from vllm_qwen36_plugin.log import logger

# ``vllm``: CUTLASS, as vLLM builds it. ``torch``: what `torch._scaled_mm` takes for a scale a token and a channel,
# cuBLAS on Hopper.
Gemm = Literal["vllm", "torch"]
_SAFE_ON_ADA = Version("2.12.0.dev0")
_OPS = ("cutlass_scaled_mm", "dynamic_per_token_scaled_fp8_quant")


def check() -> None:
    """Check that this build of vLLM has the ops.

    Raises:
        CompatError: it lacks one of them.
    """
    for name in _OPS:
        if not hasattr(torch.ops._C, name):
            raise CompatError(f"vLLM has no torch.ops._C.{name}")


def supported(capability: tuple[int, int]) -> bool:
    """Whether a GPU of this (major, minor) capability multiplies e4m3: Ada (8.9) and later."""
    return capability >= (8, 9)


def quantize_tokens(x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Quantize ``x`` ``[m, k]`` to e4m3, each token with a float32 scale of its own, ``[m, 1]``.

    For drafts, whose model torch.compile traces. Prefill has a faster kernel, inside an op.
    """
    tokens = torch.empty(x.shape, dtype=torch.float8_e4m3fn, device=x.device)
    scales = torch.empty(x.shape[0], 1, dtype=torch.float32, device=x.device)
    torch.ops._C.dynamic_per_token_scaled_fp8_quant(tokens, x, scales, None)
    return tokens, scales


def multiply(
    out: torch.Tensor,
    tokens: torch.Tensor,
    weight: torch.Tensor,
    token_scales: torch.Tensor,
    weight_scales: torch.Tensor,
    gemm: Gemm = "vllm",
) -> None:
    """Compute ``out = (tokens * token_scales) @ (weight * weight_scales)``.

    Args:
        out: ``[m, n]``, BF16 or FP16; may be some columns of a wider matrix.
        tokens: e4m3 ``[m, k]``.
        weight: e4m3 ``[k, n]`` with k contiguous.
        token_scales: float32 ``[m, 1]``.
        weight_scales: float32 ``[1, n]``; for vLLM's GEMM ``[n, 1]`` too.
        gemm: one that `works`. Both take the hardware's fast accumulation.
    """
    if gemm == "torch":
        torch._scaled_mm(
            tokens,
            weight,
            scale_a=token_scales,
            scale_b=weight_scales,
            out_dtype=out.dtype,
            use_fast_accum=True,
            out=out,
        )
    elif out.is_contiguous() or writes_strided(out.device, out.dtype, gemm):
        torch.ops._C.cutlass_scaled_mm(out, tokens, weight, token_scales, weight_scales, None)
    else:
        whole = torch.empty(out.shape, dtype=out.dtype, device=out.device)
        torch.ops._C.cutlass_scaled_mm(whole, tokens, weight, token_scales, weight_scales, None)
        copy_columns(out, whole)


def copy_columns(out: torch.Tensor, whole: torch.Tensor) -> None:
    """Copy ``whole`` to ``out``, some columns of a wider matrix of the same dtype.

    PyTorch copies such a block one element at a time: on an H200 17,408 of 34,816 columns of 16 bits at 1.7 TB/s
    read and written. If rows begin and end at multiples of 16 bytes, it is given elements of 16 bytes: an eighth of
    the loads and stores, at 4.2 TB/s (0.55 ms for 1.4 in a first token of 1,024 tokens, 16 layers, bench/prefill).
    """
    if _in_sixteens(out) and _in_sixteens(whole):
        out, whole = out.view(torch.complex128), whole.view(torch.complex128)
    out.copy_(whole)


def _in_sixteens(block: torch.Tensor) -> bool:
    """Whether a matrix can be viewed as elements of 16 bytes, each at an address that allows to load it at once."""
    stride, along = block.stride()
    size = block.element_size()
    # A view needs the offset besides: a storage may begin anywhere.
    places = block.data_ptr() | size * (block.storage_offset() | stride | block.shape[1])
    return along == 1 and not places & 15


@cache
def writes_strided(device: torch.device, dtype: torch.dtype, gemm: Gemm) -> bool:
    """Whether a GEMM that writes some columns of a wider matrix leaves the others alone.

    vLLM 0.26.0's kernels for Hopper write as if the columns were all there are; those of 0.33.0 refuse such a
    result. Tried once per GPU and dtype of the result, on 64 tokens.
    """
    # Made in float32 by name: while vLLM loads a model, the default dtype is the model's.
    tokens = torch.ones(64, 64, dtype=torch.float32, device=device).to(torch.float8_e4m3fn)
    scales = torch.ones(64, 1, dtype=torch.float32, device=device)
    wide = torch.zeros(64, 128, dtype=dtype, device=device)
    if gemm == "torch":
        multiply(wide[:, 64:], tokens, tokens.t(), scales, scales.t(), gemm)
    else:
        try:
            torch.ops._C.cutlass_scaled_mm(wide[:, 64:], tokens, tokens.t(), scales, scales, None)
        except RuntimeError:
            return False
    expected = torch.zeros_like(wide)
    expected[:, 64:] = 64
    return bool(torch.equal(wide, expected))


@cache
def works(device: torch.device, dtype: torch.dtype, gemm: Gemm) -> bool:
    """Whether a GEMM exists for this GPU and results of this dtype. Call `check` first.

    PyTorch's is a private function: it is taken if it does what is expected of it, parts of a wider matrix
    included (tried once; 2.11 does on an H200, in BF16 and FP16). On Ada it is not even tried before 2.12: its
    kernel ignores the current stream, and from 256 tokens on a GPU was seen to hang (pytorch/pytorch#177651).
    """
    if gemm == "vllm":
        return True
    ada = device.type == "cuda" and torch.cuda.get_device_capability(device) == (8, 9)
    if ada and Version(torch.__version__) < _SAFE_ON_ADA:
        logger.debug("vllm-qwen36-plugin: PyTorch's GEMM in e4m3 may hang on Ada before 2.12")
        return False
    try:
        return writes_strided(device, dtype, gemm)
    except (AttributeError, TypeError, RuntimeError) as reason:
        logger.debug("vllm-qwen36-plugin: no GEMM in e4m3 by PyTorch: %s", reason)
        return False
