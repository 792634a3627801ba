"""vLLM's own kernels as far as this plugin knows them, on the CPU: their names, and their order of a weight."""

from __future__ import annotations

from dataclasses import fields
from typing import Any

import torch
from vllm.model_executor.kernels.linear import MPLinearLayerConfig
from vllm.model_executor.kernels.linear.mixed_precision.MPLinearKernel import MPLinearKernel
from vllm.model_executor.parameter import (
    BasevLLMParameter,
    GroupQuantScaleParameter,
    PackedvLLMParameter,
    permute_param_layout_,
)
from vllm.scalar_type import scalar_types

from vllm_qwen36_plugin.prefill import dispatch
from vllm_qwen36_plugin.prefill.kernel import PrefillLinearKernel
from vllm_qwen36_plugin.prefill.layouts import LAYOUTS
from vllm_qwen36_plugin.prefill.shape import Shape

from .made import DenseKernel, Weight, checkpoint_codes, pack, scale_places

SHAPE = Shape("marlin", 128, 192, 4, 32, "bfloat16")
MACHETE = Shape("machete", 128, 256, 4, 64, "bfloat16")
TYPES = {4: scalar_types.uint4b8, 8: scalar_types.uint8b128}


class _Repacking(MPLinearKernel):  # type: ignore[misc]
    layout: str

    @classmethod
    def get_min_capability(cls) -> int:
        return 75

    @classmethod
    def can_implement(cls, c: Any) -> tuple[bool, str | None]:
        return True, None

    def process_weights_after_loading(self, layer: torch.nn.Module) -> None:
        """As theirs: both tensors replaced, in the kernel's order, and an empty one for zero points."""
        k, n = self.config.partition_weight_shape
        bits = self.config.weight_type.size_bits

        def words(x: Any) -> Any:
            assert isinstance(x, BasevLLMParameter)
            permute_param_layout_(x, input_dim=0, output_dim=1, packed_dim=0)
            stored = pack(checkpoint_codes(x.data, bits), LAYOUTS[self.layout, bits])
            x.data = stored.reshape(k // 16, -1)
            return x

        def scales(x: Any) -> Any:
            assert isinstance(x, BasevLLMParameter)
            permute_param_layout_(x, input_dim=0, output_dim=1)
            stored = torch.empty_like(x.data).contiguous()
            stored[:, scale_places(n, self.layout, len(x))] = x.data
            x.data = stored
            return x

        empty = torch.nn.Parameter(torch.empty(0, dtype=torch.int32), requires_grad=False)
        setattr(layer, self.w_zp_name or "w_zp", empty)
        self._transform_param(layer, self.w_q_name, words)
        self._transform_param(layer, self.w_s_name, scales)
        layer.input_global_scale = None
        if getattr(layer, "bias", None) is not None:
            layer.bias.data = layer.bias.data.flip(0)  # Marlin's order is another, but an order too

    def apply_weights(self, layer: Any, x: torch.Tensor, bias: torch.Tensor | None = None) -> torch.Tensor:
        assert layer.input_global_scale is None
        k, n = self.config.partition_weight_shape
        shape = Shape(self.layout, k, n, self.config.weight_type.size_bits, self.config.group_size, "")
        natural = None if bias is None else bias.flip(0)
        return DenseKernel(shape, self.w_q_name, self.w_s_name).apply_weights(layer, x, natural)


class MarlinLinearKernel(_Repacking):
    layout = "marlin"


class MacheteLinearKernel(_Repacking):
    layout = "machete"


class ExllamaLinearKernel(_Repacking):
    layout = "marlin"


def load_into(layer: torch.nn.Module, weight: Weight, *, transposed: bool = False) -> None:
    """Parameters with a checkpoint's tensors, of vLLM's classes; transposed as compressed-tensors has them."""
    words, scales = weight.words(), weight.scales.clone()
    if transposed:
        words, scales = words.t().contiguous(), scales.t().contiguous()
    into, out = (1, 0) if transposed else (0, 1)
    factor = 32 // weight.shape.bits
    layer.register_parameter(
        "qweight",
        PackedvLLMParameter(
            data=words,
            input_dim=into,
            output_dim=out,
            packed_dim=into,
            packed_factor=factor,
            weight_loader=_copy,
        ),
    )
    layer.register_parameter(
        "scales", GroupQuantScaleParameter(data=scales, input_dim=into, output_dim=out, weight_loader=_copy)
    )


def _copy(param: torch.nn.Parameter, loaded: torch.Tensor) -> None:
    param.data.copy_(loaded)  # vLLM's reload passes another by this name


def config_of(shape: Shape, **changes: Any) -> Any:
    """What vLLM asks its kernels about, for a linear of that shape."""
    arguments = {
        "full_weight_shape": (shape.k, shape.n),
        "partition_weight_shape": (shape.k, shape.n),
        "weight_type": TYPES[shape.bits],
        "act_type": getattr(torch, shape.dtype),
        "group_size": shape.group_size,
        "zero_points": False,
        "has_g_idx": False,  # up to 0.29
    }
    names = {field.name for field in fields(MPLinearLayerConfig)}
    config = MPLinearLayerConfig(**{name: value for name, value in arguments.items() if name in names})
    for name, value in changes.items():
        setattr(config, name, value)
    return config


def kernel_of(shape: Shape) -> Any:
    return PrefillLinearKernel(config_of(shape), w_q_param_name="qweight", w_s_param_name="scales")


class Layer(torch.nn.Module):  # type: ignore[misc]
    """A linear of vLLM as far as its kernel is concerned."""

    def __init__(self, shape: Shape, *, bias: bool = False) -> None:
        super().__init__()
        self.shape = shape
        self.kernel = kernel_of(shape)
        self.bias = (
            torch.nn.Parameter(torch.arange(shape.n).bfloat16(), requires_grad=False) if bias else None
        )
        self.loaded: list[Weight] = []

    def load(self, seed: int = 0, **how: Any) -> Layer:
        weight = Weight.random(self.shape, seed)
        self.loaded[:] = [weight]
        load_into(self, weight, **how)
        self.kernel.process_weights_after_loading(self)
        return self

    @property
    def dense(self) -> torch.Tensor:
        return self.loaded[0].dense().to(self.loaded[0].scales.dtype)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.kernel.apply_weights(self, x, self.bias)


def activations(count: int, k: int = SHAPE.k) -> torch.Tensor:
    return torch.randn(count, k, generator=torch.Generator().manual_seed(count)).bfloat16()


def entry(layer: Layer) -> dispatch.Linear:
    linear = dispatch.get(layer.shape.key)
    assert linear is not None
    return linear
