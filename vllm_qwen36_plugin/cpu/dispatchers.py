"""Kernels of speculative decoding that vLLM 0.30.0 launches without Triton though it has a function for each.

Without Triton its CPU runner puts a function in place of each kernel, by the kernel's name in its module. In 0.30.0
five kernels are launched by a dispatcher that took hold of the kernel at import. It finds a Python function that
only stands for the kernel, and the first request with drafts ends the engine: "Cannot inspect kernel parameters".

Changes: ``kernel`` of dispatchers in ``spec_decode.utils`` and ``rejection_sampler`` leads to that function.
Why: stock 0.30.0 dies at the first request with MTP on a CPU; 0.31.0 replaces what is launched.
Versions: run on 0.30.0. Up to 0.29 there are no dispatchers, from 0.31 on no stale ones: nothing is changed.
Checks: a dispatcher is touched only if its kernel is a plain function, and vLLM's takes as many arguments.
May go: when 0.30.0 is no longer supported.
"""

from __future__ import annotations

from collections.abc import Callable
from importlib import import_module
from inspect import signature
from types import FunctionType
from typing import Any

_MODULES = ("vllm.v1.spec_decode.utils", "vllm.v1.sample.rejection_sampler")


class InPlaceOf:
    """Launches a function of vLLM's in place of a kernel, as a dispatcher does: ``kernel[grid](**named)``.

    The function has other names for some arguments ("stride" for "block_table_stride"), in the same order.
    """

    def __init__(self, kernel: FunctionType, fallback: Any) -> None:
        # A dispatcher asks for the names by which it is to pass arguments.
        self.arg_names = tuple(signature(kernel).parameters)
        self._fallback = fallback

    def __getitem__(self, grid: tuple[int, ...]) -> Callable[..., None]:
        def launch(**named: Any) -> None:
            self._fallback[grid](*(named[name] for name in self.arg_names))

        return launch


def mend_dispatchers() -> list[str]:
    """Give each stale dispatcher the function that vLLM has for it; return their kernels' names. Idempotent.

    To be called in a worker, where the modules are loaded. Does nothing where Triton runs, or nothing is stale.
    """
    from vllm.triton_utils import HAS_TRITON

    if HAS_TRITON:
        return []
    try:
        fallbacks: Any = import_module("vllm.utils.cpu_triton_utils")
        modules = [import_module(name) for name in _MODULES]
    except ImportError:
        return []
    mended = []
    for module in modules:
        for dispatcher in list(vars(module).values()):
            kernel = getattr(dispatcher, "__dict__", {}).get("kernel")
            if not isinstance(kernel, FunctionType):
                continue
            fallback = getattr(fallbacks, kernel.__name__, None)
            function = getattr(fallback, "func", None)
            if callable(function) and len(signature(function).parameters) == len(
                signature(kernel).parameters
            ):
                dispatcher.kernel = InPlaceOf(kernel, fallback)
                mended.append(kernel.__name__)
    return mended
