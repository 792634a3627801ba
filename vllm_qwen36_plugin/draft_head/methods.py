"""Linear methods for layers that load their weight dense and are quantized once it is there.

They take the place of vLLM's ``UnquantizedLinearMethod`` on a layer that has its parameters already. So loading,
fused shards and tensor parallelism are vLLM's own, and so is the check of what was loaded.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from vllm.model_executor.layers.quantization.base_config import QuantizeMethodBase

from gptq_hybrid.packing import pack, quantize_rtn
from vllm_qwen36_plugin.upstream import scaled_mm
from vllm_qwen36_plugin.upstream.gptq import stock_gptq

from .selftest import require_agreement
from .settings import Precision

_BITS: dict[Precision, int] = {"w4": 4, "w8": 8}
# The first of these that divides a weight's inputs is taken. With all in 4 bits bench/mini's drafts keep 0.977 of
# BF16's tokens a step in groups of 128 and 0.992 in groups of 32 (bench/drafts/groups.json), for 9 % more bytes.
_GROUPS: dict[Precision, tuple[int, ...]] = {"w4": (32,), "w8": (128, 64, 32)}
# Largest finite e4m3.
_FP8_MOST = 448.0
# Channels quantized at a time: float32 of all channels of an output head would be 5 GB.
_CHANNELS = 1 << 13


class LinearStandIn(torch.nn.Module):  # type: ignore[misc]
    """A weight ``[n, k]`` with what vLLM's kernels read of a linear layer: one that is split over no GPU.

    Humming's asks for ``input_size``, with which vLLM 0.33 refuses a bare module on Hopper.
    """

    def __init__(self, weight: torch.Tensor) -> None:
        super().__init__()
        self.output_size, self.input_size = (int(size) for size in weight.shape)
        self.output_size_per_partition, self.input_size_per_partition = self.output_size, self.input_size
        self.output_partition_sizes = [self.output_size]
        self.params_dtype, self.has_bias = weight.dtype, False
        self.weight = torch.nn.Parameter(weight, requires_grad=False)


class _BuiltByVllm(QuantizeMethodBase):  # type: ignore[misc]
    """For layers whose weight vLLM's own method has created already."""

    def create_weights(self, layer: torch.nn.Module, *args: Any, **kwargs: Any) -> None:
        """Abstract in vLLM, and never called."""
        raise NotImplementedError("the layer is built by vLLM's own method")


class PackedOnLoad(_BuiltByVllm):
    """Turns ``layer.weight`` ``[n, k]`` into a symmetric linear of vLLM's GPTQ method, with the kernel it picks."""

    def __init__(self, weight: torch.Tensor, group_size: int, bits: int) -> None:
        """Have vLLM choose the kernel while the model is built, as it does; parameters wait beside the layer."""
        config, method = stock_gptq()
        self.group_size, self.bits = group_size, bits
        self.inner = method(
            config(
                weight_bits=bits,
                group_size=group_size,
                desc_act=False,
                is_sym=True,
                lm_head_quantized=False,
                dynamic={},
                full_config={},
            )
        )
        n, k = weight.shape
        self._filled = False
        self._packed = torch.nn.Module()
        with torch.device(weight.device):
            self.inner.create_weights(self._packed, k, [n], k, n, weight.dtype, weight_loader=_refuse_to_load)

    def process_weights_after_loading(self, layer: torch.nn.Module) -> None:
        """Quantize, free the dense weight, have vLLM's kernel repack. Does nothing the second time.

        Raises:
            ValueError: the weight is not finite.
        """
        # Humming's kernel calls its words `weight` too, so that a name does not tell.
        if self._filled:
            return
        self._filled = True
        self._fill(layer.weight.data)
        del layer.weight
        for name, parameter in self._packed.named_parameters():
            layer.register_parameter(name, parameter)
        self._packed = torch.nn.Module()
        self.inner.process_weights_after_loading(layer)

    def _fill(self, dense: torch.Tensor) -> None:
        """Write the rounded weight into vLLM's parameters, whose columns are the channels of ``dense``."""
        for first in range(0, len(dense), _CHANNELS):
            codes, scales = quantize_rtn(
                dense[first : first + _CHANNELS], self.bits, self.group_size, scale_dtype=dense.dtype
            )
            parts = pack(codes, scales, self.bits)
            for name in ("qweight", "scales", "qzeros"):
                parameter = getattr(self._packed, name).data
                # Zero points are packed along the channels.
                start = first * parameter.shape[1] // len(dense)
                parameter[:, start : start + parts[name].shape[1]] = parts[name]

    def apply(
        self, layer: torch.nn.Module, x: torch.Tensor, bias: torch.Tensor | None = None
    ) -> torch.Tensor:
        """Multiply ``x`` ``[..., k]``: ``[..., n]``."""
        out: torch.Tensor = self.inner.apply(layer, x, bias)
        return out


class Fp8OnLoad(_BuiltByVllm):
    """Turns ``layer.weight`` into e4m3 with a scale a channel; each token of the input is quantized by itself."""

    def process_weights_after_loading(self, layer: torch.nn.Module) -> None:
        """Quantize in place of the dense weight. Does nothing the second time."""
        weight = layer.weight.data
        if weight.dtype == torch.float8_e4m3fn:
            return
        values = torch.empty(weight.shape, dtype=torch.float8_e4m3fn, device=weight.device)
        scales = torch.empty(len(weight), 1, dtype=torch.float32, device=weight.device)
        for first in range(0, len(weight), _CHANNELS):
            part = slice(first, first + _CHANNELS)
            dense = weight[part].float()
            scales[part] = (dense.abs().amax(dim=1, keepdim=True) / _FP8_MOST).clamp(min=2.0**-100)
            values[part] = (dense / scales[part]).to(torch.float8_e4m3fn)
        layer.weight = torch.nn.Parameter(values, requires_grad=False)
        layer.register_buffer("weight_scale", scales)

    def apply(
        self, layer: torch.nn.Module, x: torch.Tensor, bias: torch.Tensor | None = None
    ) -> torch.Tensor:
        """Multiply ``x`` ``[..., k]``: ``[..., n]``, in the dtype of ``x``."""
        tokens, scales = scaled_mm.quantize_tokens(x.reshape(-1, x.shape[-1]))
        out = torch.empty(len(tokens), len(layer.weight), dtype=x.dtype, device=x.device)
        scaled_mm.multiply(out, tokens, layer.weight.t(), scales, layer.weight_scale)
        if bias is not None:
            out += bias
        return out.reshape(*x.shape[:-1], out.shape[-1])


class CheckedOnLoad(_BuiltByVllm):
    """Quantizes a layer once it is loaded, compares, and puts the dense weight back if the products are off.

    In place of a layer's method until then; afterwards the layer has the cheaper method, or its own again.
    """

    def __init__(
        self,
        cheaper: QuantizeMethodBase,
        stock: QuantizeMethodBase,
        precision: Precision,
        on_failure: Callable[[torch.nn.Module, Exception], None],
    ) -> None:
        """``on_failure`` is called with a layer that stays as it was, and the reason."""
        self.cheaper, self.stock, self.precision, self._on_failure = cheaper, stock, precision, on_failure

    def process_weights_after_loading(self, layer: torch.nn.Module) -> None:
        """Quantize once; never raise for what the cheaper method does."""
        parameters, buffers = dict(layer._parameters), dict(layer._buffers)
        try:
            self.cheaper.process_weights_after_loading(layer)
            require_agreement(parameters["weight"].data, partial(self.cheaper.apply, layer), self.precision)
        except Exception as error:  # noqa: BLE001 - drafts from the dense weight are right too
            for current, before in ((layer._parameters, parameters), (layer._buffers, buffers)):
                current.clear()
                current.update(before)
            layer.quant_method = self.stock
            self.stock.process_weights_after_loading(layer)
            self._on_failure(layer, error)
        else:
            layer.quant_method = self.cheaper

    def apply(
        self, layer: torch.nn.Module, x: torch.Tensor, bias: torch.Tensor | None = None
    ) -> torch.Tensor:
        """Multiply as the layer's own method does, before the weights are loaded."""
        out: torch.Tensor = self.stock.apply(layer, x, bias)
        return out


def quantizing_method(weight: torch.Tensor, precision: Precision) -> QuantizeMethodBase | None:
    """Choose the method for a layer with this weight, ``[n, k]``; None if the layer is to stay dense.

    In W4 and W8 it stays dense if vLLM's kernels have no groups that divide k.
    """
    if precision == "fp8":
        return Fp8OnLoad() if not (weight.shape[0] % 16 or weight.shape[1] % 16) else None
    if precision == "bf16":
        return None
    group_size = _group_size(weight.shape[1], precision)
    if group_size is None or weight.shape[0] % 64:
        return None
    return PackedOnLoad(weight, group_size, _BITS[precision])


def quantized_bytes(weight: torch.Tensor, precision: Precision) -> int:
    """Bytes of ``weight`` ``[n, k]`` in ``precision``: codes, and 16-bit scales of groups (float32 of channels)."""
    n, k = (int(size) for size in weight.shape)
    if precision == "bf16":
        return n * k * int(weight.element_size())
    if precision == "fp8":
        return n * k + 4 * n
    group_size = _group_size(k, precision) or k
    return n * k * _BITS[precision] // 8 + 2 * n * (k // group_size)


def _group_size(k: int, precision: Precision) -> int | None:
    return next((size for size in _GROUPS[precision] if k % size == 0), None)


def _refuse_to_load(*_: Any, **__: Any) -> None:
    raise RuntimeError("a weight made here is not loaded from a file")
