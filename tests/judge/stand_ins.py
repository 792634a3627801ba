"""Stand-ins for the linear kernels of vLLM, for shapes and types that this CPU cannot run."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import torch
from torch import nn

_GPU = {"is_cuda": lambda: True, "is_cpu": lambda: False, "is_xpu": lambda: False, "is_rocm": lambda: False,
        "get_device_capability": lambda *_: None}  # fmt: skip


@contextlib.contextmanager
def _attribute(owner: Any, name: str, value: Any) -> Iterator[None]:
    before = getattr(owner, name)
    setattr(owner, name, value)
    try:
        yield
    finally:
        setattr(owner, name, before)


def install_stand_in_kernels() -> None:
    """Replace the linear kernels by some that accept what those for Ada and Hopper accept, and do nothing.

    Marlin's own conditions are asked, as though on such a GPU; the CPU's kernels know fewer types and want other
    shapes. Scaled (FP8) and FP4 kernels are taken for granted.
    """
    from vllm.model_executor.kernels import linear
    from vllm.model_executor.kernels.linear.mixed_precision import MPLinearKernel, marlin
    from vllm.model_executor.layers.quantization.inc.schemes import inc_wna16_scheme
    from vllm.model_executor.layers.quantization.utils import marlin_utils
    from vllm.platforms import PlatformEnum

    stock = marlin_utils.query_marlin_supported_quant_types

    def as_on_ada(has_zp: bool, include_fp_type: bool = True) -> Any:
        with _attribute(marlin_utils, "current_platform", SimpleNamespace(**_GPU)):
            return stock(has_zp, include_fp_type, 89)

    marlin_utils._query_cpu_marlin_supported_quant_types = as_on_ada

    class StandIn(MPLinearKernel):  # type: ignore[misc]
        @classmethod
        def get_min_capability(cls) -> int:
            return -1

        @classmethod
        def can_implement(cls, config: Any) -> tuple[bool, str | None]:
            with _attribute(marlin, "current_platform", SimpleNamespace(**_GPU)):
                return marlin.MarlinLinearKernel.can_implement(config)  # type: ignore[no-any-return]

        def process_weights_after_loading(self, layer: nn.Module) -> None:
            pass

        def apply_weights(self, layer: nn.Module, x: torch.Tensor, bias: Any = None) -> torch.Tensor:
            raise NotImplementedError

    linear._POSSIBLE_KERNELS[PlatformEnum.CPU] = [StandIn]

    inc_wna16_scheme.current_platform = SimpleNamespace(**_GPU)

    class Nothing:
        def __init__(self, *args: Any, **kwargs: Any) -> None:
            self.config = SimpleNamespace(zero_points=True)

        def process_weights_after_loading(self, layer: nn.Module) -> None:
            pass

        def __getattr__(self, name: str) -> Any:
            if name.startswith("__"):
                raise AttributeError(name)
            return lambda *args, **kwargs: None

    for module in list(sys.modules.values()):
        if getattr(module, "__name__", "").startswith("vllm."):
            for name in ("init_fp8_linear_kernel", "init_int8_linear_kernel", "init_nvfp4_linear_kernel",
                         "init_mxfp4_linear_kernel", "init_mxfp8_linear_kernel"):  # fmt: skip
                if name in vars(module):
                    setattr(module, name, Nothing)
