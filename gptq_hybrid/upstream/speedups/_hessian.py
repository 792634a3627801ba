"""Multiply calibration inputs into Hessians on tensor cores.

Inputs are BF16, with 8 significant bits, and so

* a product of two of them is exact in FP32 (16 bits of 24), on either kind of unit;
* TF32 (11 bits) holds each of them exactly: rounding to it changes nothing.

What differs is the order, and on tensor cores the rounding, of the FP32 sum over a batch's tokens. FP32 inputs
would have to be split into several BF16 parts; these have nothing to split. ``bench/quantize/hessian.py``
measures each way against float64.

Changes: ``GPTQ.compute_hessian_xtx``, for 16-bit inputs in one piece.
Why: gptqmodel converts a batch X to FP32 and multiplies XᵀX with TF32 off. At the 27B's ``down_proj`` that is
    1.2 TFLOP a 2,048-token batch, on units that do a tenth of what tensor cores do.
Versions: 7.6.0; it fits 7.7.0, and was not run there on a GPU.
Checks: that method and ``GPTQ.resolve_hessian_chunk_size`` exist.
May go: when gptqmodel has such an option.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import wraps
from typing import TYPE_CHECKING, Any, Literal, get_args

from gptq_hybrid.common.errors import HybridError
from gptq_hybrid.upstream.versions import moved

if TYPE_CHECKING:
    import torch

# "ieee": gptqmodel's own. "half": the 16-bit inputs themselves, FP32 sums.
Products = Literal["ieee", "half"]


def gram(matrix: torch.Tensor, products: Products) -> torch.Tensor:
    """Return XᵀX of a 16-bit ``matrix``, ``[tokens, features]``, as ``[features, features]`` in FP32.

    Off a GPU every choice is ``"ieee"``.
    """
    import torch

    if not matrix.is_cuda or products == "ieee":
        full = matrix.to(torch.float32)
        return full.T @ full
    return torch.mm(matrix.T, matrix, out_dtype=torch.float32)


@contextmanager
def hessian_products(products: Products) -> Iterator[None]:
    """Have GPTQ multiply Hessians as ``products`` says, where a module's inputs are BF16 or FP16.

    Other inputs go gptqmodel's own way, as do all where ``hessian.chunk_size`` or ``chunk_bytes`` is set.

    Raises:
        HybridError: ``products`` is none of :data:`Products`.
        IncompatibleError: ``GPTQ.compute_hessian_xtx`` is gone.
    """
    import torch
    from gptqmodel.quantization.gptq import GPTQ

    if products not in get_args(Products):
        raise HybridError(
            f"Hessians cannot be multiplied by {products!r}",
            remedy=f"Choose one of: {', '.join(get_args(Products))}.",
        )
    original: Callable[..., torch.Tensor] | None = getattr(GPTQ, "compute_hessian_xtx", None)
    if original is None or not hasattr(GPTQ, "resolve_hessian_chunk_size"):
        raise moved("GPTQ.compute_hessian_xtx and GPTQ.resolve_hessian_chunk_size are expected")
    if products == "ieee":
        yield
        return

    @wraps(original)
    def compute_hessian_xtx(self: Any, matrix: torch.Tensor) -> torch.Tensor:
        half = matrix.dtype in (torch.bfloat16, torch.float16)
        if not half or self.resolve_hessian_chunk_size(matrix.shape[0], torch.float32) is not None:
            return original(self, matrix)
        return gram(matrix, products)

    GPTQ.compute_hessian_xtx = compute_hessian_xtx
    try:
        yield
    finally:
        GPTQ.compute_hessian_xtx = original
