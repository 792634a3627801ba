"""Linears on a GPU as a model of the family would load them, by the stock kernel that a test names."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from vllm.config import VllmConfig, set_current_vllm_config

from gptq_hybrid.packing import dequantize_symmetric
from vllm_qwen36_plugin.architectures import TARGETS
from vllm_qwen36_plugin.prefill import dispatch, routes
from vllm_qwen36_plugin.prefill.kernel import FP8_SCALES, PrefillLinearKernel
from vllm_qwen36_plugin.prefill.shape import Shape
from vllm_qwen36_plugin.upstream.gptq import stock_gptq

DEVICE = "cuda"
LARGE = {
    "qkv": (5120, 14336),
    "qkvz": (5120, 16384),
    "out": (6144, 5120),
    "gate_up": (5120, 34816),
    "down": (17408, 5120),
}
TOKENS = (1, 17, 129, 1000, 4096)


def capability() -> tuple[int, int]:
    return torch.cuda.get_device_capability()  # type: ignore[no-any-return]


def fp8_here() -> bool:
    return capability() >= (8, 9)


@dataclass(eq=False)
class Loaded:
    """A linear after vLLM's method has processed it, and what was loaded: int32 words, scales."""

    layer: torch.nn.Module
    method: Any
    words: torch.Tensor
    scales: torch.Tensor

    @property
    def shape(self) -> Shape:
        return self.method.kernel.shape  # type: ignore[no-any-return]

    @property
    def entry(self) -> dispatch.Linear:
        linear = dispatch.get(self.shape.key)
        assert linear is not None
        return linear

    def dense(self) -> torch.Tensor:
        """``[n, k]`` as the checkpoint has it."""
        return dequantize_symmetric(self.words, self.scales, self.shape.bits)

    def weight(self) -> routes.Weight:
        kernel = self.method.kernel
        tensors = [getattr(self.layer, name) for name in kernel.names]
        return self.entry.weight(tensors, getattr(self.layer, FP8_SCALES, None))

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        return self.method.apply(self.layer, x)  # type: ignore[no-any-return]


class Server:
    """Loads linears as a model of the family would, by the stock kernel that is named."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, options: dict[str, Any], tokens: int) -> None:
        self.patch = monkeypatch
        self.config = VllmConfig(additional_config={"qwen36": options})
        vars(self.config)["model_config"] = SimpleNamespace(
            hf_config=SimpleNamespace(architectures=[TARGETS[0]])
        )
        vars(self.config)["scheduler_config"] = SimpleNamespace(max_num_batched_tokens=tokens)

    def load(
        self,
        k: int,
        n: int,
        stock: str = "marlin",
        bits: int = 4,
        group_size: int = 128,
        dtype: str = "bfloat16",
        *,
        scales: Callable[[torch.Tensor], torch.Tensor] = lambda values: values,
        repacked: Callable[[torch.nn.Module], None] = lambda layer: None,
    ) -> Loaded:
        """``scales`` changes what is loaded, ``repacked`` what the stock kernel made of it."""
        if stock == "machete" and capability() != (9, 0):
            pytest.skip("Machete is for GPUs of compute capability 9.0")
        # Of those vLLM prefers to Marlin where it can.
        others = "" if stock == "machete" else "MacheteLinearKernel,AllSparkLinearKernel,"
        self.patch.setenv("VLLM_DISABLED_KERNELS", others + "HummingLinearKernel")
        config, method_class = stock_gptq()
        quantization = {
            "quant_method": "gptq",
            "bits": bits,
            "group_size": group_size,
            "sym": True,
            "desc_act": False,
        }
        with set_current_vllm_config(self.config):
            method = method_class(config.from_config(quantization))
            layer = torch.nn.Module()
            with torch.device(DEVICE):
                method.create_weights(
                    layer, k, [n], k, n, getattr(torch, dtype), weight_loader=lambda *_, **__: None
                )
            layer.qweight.data.random_(-(2**31), 2**31)
            values = torch.empty_like(layer.scales.data).uniform_(1e-3, 1e-2)
            values *= torch.randint_like(values, 0, 2) * 2 - 1
            layer.scales.data.copy_(scales(values))
            loaded = Loaded(layer, method, layer.qweight.data.clone(), layer.scales.data.clone())
            kernel = method.kernel
            assert isinstance(kernel, PrefillLinearKernel), type(kernel)
            assert kernel.shape == Shape(stock, k, n, bits, group_size, dtype)
            process = kernel.stock.process_weights_after_loading

            def processed(layer: torch.nn.Module) -> None:
                process(layer)
                repacked(layer)

            vars(kernel.stock)["process_weights_after_loading"] = processed
            method.process_weights_after_loading(layer)
        return loaded


def activations_for(count: int, loaded: Loaded) -> torch.Tensor:
    return torch.randn(count, loaded.shape.k, dtype=getattr(torch, loaded.shape.dtype), device=DEVICE)


def off(result: torch.Tensor, expected: torch.Tensor) -> float:
    """Root mean square of the difference, as a share of that of ``expected``."""
    return float((result.float() - expected).norm() / expected.norm())


def same(result: torch.Tensor, expected: torch.Tensor) -> bool:
    """Bit for bit, but for which NaN a NaN is."""
    differs = result.view(torch.int16) != expected.view(torch.int16)
    return not bool((differs & ~(result.isnan() & expected.isnan())).any())
