"""GPTQ's sweep, 128 columns at a time, in Triton where gptqmodel has no kernel for it.

Changes: ``gptq_cuda.block_update_available`` and ``gptq_cuda.gptq_block_update``.
Why: gptqmodel builds a CUDA kernel on first use, to the same bytes. A host without a compiler takes column
    after column, a dozen launches and a wait each. Where the kernel can be built it stays in place.
Versions: 7.6.0; it fits 7.7.0, and was not run there on a GPU.
Checks: ``GPTQ.quantize`` names both functions; the arguments of the second.
May go: when gptqmodel ships its kernel built.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache
from typing import Any

from gptq_hybrid.upstream.versions import moved

_ARGUMENTS = (
    "work", "hinv", "scale", "zero", "column_group", "quantized", "errors", "losses", "maxq",
)  # fmt: skip


@contextmanager
def block_kernel() -> Iterator[None]:
    """Have the sweep run 128 columns at a time in Triton where gptqmodel's own kernel cannot be built.

    Raises:
        IncompatibleError: gptqmodel does not use its kernel as 7.6.0 does.
    """
    try:
        from gptqmodel.quantization import gptq, gptq_cuda
    except ImportError as error:
        raise moved(f"gptqmodel.quantization.gptq_cuda is expected: {error}") from error

    available: Callable[[], bool] | None = getattr(gptq_cuda, "block_update_available", None)
    cuda_update: Callable[..., None] | None = getattr(gptq_cuda, "gptq_block_update", None)
    names = inspect.unwrap(gptq.GPTQ.quantize).__code__.co_names
    if (
        available is None
        or cuda_update is None
        or not {"block_update_available", "gptq_block_update"} <= {*names}
    ):
        raise moved("GPTQ.quantize is expected to import block_update_available and gptq_block_update")
    if tuple(inspect.signature(cuda_update).parameters) != _ARGUMENTS:
        raise moved(f"gptq_block_update is expected to take {', '.join(_ARGUMENTS)}")

    # A build that fails is not tried again; quantize fetches both functions before it calls either.
    built = cache(available)

    def gptq_block_update(*tensors: Any) -> None:
        if built():
            cuda_update(*tensors)
            return
        from ._block_kernel import block_update

        block_update(*tensors)

    gptq_cuda.block_update_available = lambda: True
    gptq_cuda.gptq_block_update = gptq_block_update
    try:
        yield
    finally:
        gptq_cuda.block_update_available, gptq_cuda.gptq_block_update = available, cuda_update
