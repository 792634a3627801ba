"""Linear methods for layers that load their weight dense and are quantized once it is there.

They take the place of vLLM's ``UnquantizedLinearMethod`` on a layer that has its parameters already, so that
loading, fused shards and tensor parallelism are vLLM's own, and so is the check of what was loaded.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from vllm.model_executor.layers.quantization.base_config import QuantizeMethodBase

from vllm_qwen36_plugin.upstream import scaled_mm
from vllm_qwen36_plugin.upstream.act_order import stock_gptq

from .rounding import quantize
from .selftest import require_agreement
from .settings import Form

_BITS = {"w4": 4, "w8": 8}
# Of a form, the first that divides a weight's inputs. With all in 4 bits bench/mini's drafts keep 0.977 of BF16's
# tokens a step in groups of 128 and 0.992 in groups of 32 (bench/drafts/groups.json), for 9 % more bytes.
_GROUPS = {"w4": (32,), "w8": (128, 64, 32)}
# Largest finite e4m3.
_FP8_MOST = 448.0
# At a time: float32 of all rows of an output head would be 5 GB.
_ROWS = 1 << 13


class _BuiltByVllm(QuantizeMethodBase):  # type: ignore[misc]
    """For layers that have their weight already: vLLM's own method made it."""

    def create_weights(self, layer: torch.nn.Module, *args: Any, **kwargs: Any) -> None:
        """Abstract in vLLM, and never called."""
        raise NotImplementedError("the layer is built by vLLM's own method")


class PackedOnLoad(_BuiltByVllm):
    """``layer.weight`` ``[n, k]`` becomes a symmetric linear of vLLM's GPTQ method and the kernel it picks."""

    def __init__(self, weight: torch.Tensor, group_size: int, bits: int) -> None:
        """Choose the kernel, as it is done where a model is built; parameters lie beside the layer until loaded."""
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
        self._packed = torch.nn.Module()
        with torch.device(weight.device):
            self.inner.create_weights(self._packed, k, [n], k, n, weight.dtype, weight_loader=_never)

    def process_weights_after_loading(self, layer: torch.nn.Module) -> None:
        """Quantize, free the dense weight, have vLLM's kernel repack.

        Raises:
            ValueError: a weight that is not finite.
        """
        if "weight" not in layer._parameters:
            return  # done before
        qweight, scales = quantize(layer.weight.data, self.group_size, self.bits)
        del layer.weight
        for name, parameter in self._packed.named_parameters():
            layer.register_parameter(name, parameter)
        layer.qweight.data, layer.scales.data = qweight, scales
        # GPTQ stores a zero point less one, and symmetric ones are not read.
        layer.qzeros.data.fill_(0x77777777 if self.bits == 4 else 0x7F7F7F7F)
        self._packed = torch.nn.Module()
        self.inner.process_weights_after_loading(layer)

    def apply(
        self, layer: torch.nn.Module, x: torch.Tensor, bias: torch.Tensor | None = None
    ) -> torch.Tensor:
        """``x`` ``[..., k]``: ``[..., n]``."""
        out: torch.Tensor = self.inner.apply(layer, x, bias)
        return out


class Fp8OnLoad(_BuiltByVllm):
    """``layer.weight`` becomes e4m3 with a scale a row, and each row of the input is quantized by itself."""

    def process_weights_after_loading(self, layer: torch.nn.Module) -> None:
        """Quantize in place of the dense weight."""
        weight = layer.weight.data
        if weight.dtype == torch.float8_e4m3fn:
            return
        values = torch.empty(weight.shape, dtype=torch.float8_e4m3fn, device=weight.device)
        scales = torch.empty(len(weight), 1, dtype=torch.float32, device=weight.device)
        for first in range(0, len(weight), _ROWS):
            part = slice(first, first + _ROWS)
            dense = weight[part].float()
            scales[part] = (dense.abs().amax(dim=1, keepdim=True) / _FP8_MOST).clamp(min=2.0**-100)
            values[part] = (dense / scales[part]).to(torch.float8_e4m3fn)
        layer.weight = torch.nn.Parameter(values, requires_grad=False)
        layer.register_buffer("weight_scale", scales)

    def apply(
        self, layer: torch.nn.Module, x: torch.Tensor, bias: torch.Tensor | None = None
    ) -> torch.Tensor:
        """``x`` ``[..., k]``: ``[..., n]``, in the dtype of ``x``."""
        rows, scales = scaled_mm.quantize_rows(x.reshape(-1, x.shape[-1]))
        out = torch.empty(len(rows), len(layer.weight), dtype=x.dtype, device=x.device)
        scaled_mm.multiply(out, rows, layer.weight.t(), scales, layer.weight_scale)
        if bias is not None:
            out += bias
        return out.reshape(*x.shape[:-1], out.shape[-1])


class OrAsItWas(_BuiltByVllm):
    """Quantizes a layer once it is loaded, compares, and puts the dense weight back if the result is off.

    In place of a layer's method until then; afterwards the layer has the cheaper method or its own again.
    """

    def __init__(
        self,
        cheaper: QuantizeMethodBase,
        stock: QuantizeMethodBase,
        form: Form,
        on_left: Callable[[torch.nn.Module, Exception], None],
    ) -> None:
        """``on_left`` is told of a layer that stays as it was, and why."""
        self.cheaper, self.stock, self.form, self._on_left = cheaper, stock, form, on_left

    def process_weights_after_loading(self, layer: torch.nn.Module) -> None:
        """Once; never raises for what the cheaper method does."""
        parameters, buffers = dict(layer._parameters), dict(layer._buffers)
        try:
            self.cheaper.process_weights_after_loading(layer)
            require_agreement(parameters["weight"].data, partial(self.cheaper.apply, layer), self.form)
        except Exception as error:  # noqa: BLE001 - drafts from the dense weight are right too
            for held, before in ((layer._parameters, parameters), (layer._buffers, buffers)):
                held.clear()
                held.update(before)
            layer.quant_method = self.stock
            self.stock.process_weights_after_loading(layer)
            self._on_left(layer, error)
        else:
            layer.quant_method = self.cheaper

    def apply(
        self, layer: torch.nn.Module, x: torch.Tensor, bias: torch.Tensor | None = None
    ) -> torch.Tensor:
        """Before the weights are loaded: as the layer's own method."""
        out: torch.Tensor = self.stock.apply(layer, x, bias)
        return out


def on_load(weight: torch.Tensor, form: Form) -> QuantizeMethodBase | None:
    """The method for a layer with this weight, ``[n, k]``; None where it stays dense.

    A weight whose k is made of no groups that vLLM's kernels know stays dense in W4 and W8.
    """
    if form == "fp8":
        return Fp8OnLoad() if not (weight.shape[0] % 16 or weight.shape[1] % 16) else None
    if form == "bf16":
        return None
    size = next((size for size in _GROUPS[form] if weight.shape[1] % size == 0), None)
    return None if size is None or weight.shape[0] % 64 else PackedOnLoad(weight, size, _BITS[form])


def _never(*_: Any, **__: Any) -> None:
    raise RuntimeError("a weight made here is not loaded from a file")
