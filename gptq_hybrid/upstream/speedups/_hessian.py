"""How gptqmodel multiplies calibration inputs into Hessians.

gptqmodel 7.6.0 converts a batch X to FP32 and multiplies XᵀX with TF32 off: at the 27B's `down_proj` 1.2 TFLOP a
2,048-token batch, on units that do a tenth of what tensor cores do. Inputs are BF16 (8 significant bits), and so

- a product of two of them is exact in FP32 (16 bits of 24), on either kind of unit;
- TF32 (11 bits) holds each of them exactly: rounding to it changes nothing.

What differs is only the order, and on tensor cores the rounding, of the FP32 sum over a batch's tokens; splitting
inputs into several BF16 parts, as FP32 inputs would need, has nothing to split. ``bench/quantize/hessian.py``
measures each way against float64.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import wraps
from typing import TYPE_CHECKING, Any, Literal, get_args

from gptq_hybrid.common.errors import HybridError
from gptq_hybrid.upstream.gptqmodel import moved

if TYPE_CHECKING:
    import torch

# "ieee": gptqmodel's own. "half": the 16-bit inputs themselves, FP32 sums.
Products = Literal["ieee", "half"]


def gram(matrix: torch.Tensor, products: Products) -> torch.Tensor:
    """XᵀX of a 16-bit ``matrix``, ``[tokens, features]``: ``[features, features]`` in FP32.

    Off a GPU all ways are ``"ieee"``.
    """
    import torch

    if not matrix.is_cuda or products == "ieee":
        full = matrix.to(torch.float32)
        return full.T @ full
    return torch.mm(matrix.T, matrix, out_dtype=torch.float32)


@contextmanager
def hessian_products(products: Products) -> Iterator[None]:
    """Have GPTQ multiply Hessians as ``products`` says, where a module's inputs are BF16 or FP16.

    Other inputs, and ``hessian.chunk_size`` or ``chunk_bytes`` where they are set, go gptqmodel's own way.

    Raises:
        HybridError: ``products`` names no way.
        IncompatibleError: ``GPTQ.compute_hessian_xtx`` is gone.
    """
    import torch
    from gptqmodel.quantization.gptq import GPTQ

    if products not in get_args(Products):
        raise HybridError(
            f"no way to multiply Hessians is called {products!r}",
            remedy=f"Ways: {', '.join(get_args(Products))}.",
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
