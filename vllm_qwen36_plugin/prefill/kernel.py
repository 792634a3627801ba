"""The linear kernel offered to vLLM: the stock one for few tokens, a dense route for many."""

from __future__ import annotations

import weakref
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from vllm.model_executor.kernels.linear.mixed_precision.MPLinearKernel import MPLinearKernel
from vllm.scalar_type import scalar_types

from vllm_qwen36_plugin.architectures import TARGETS
from vllm_qwen36_plugin.upstream.linear_kernels import in_gptq_layout, stock_choice

from . import dispatch
from .prepare import Preparation
from .selftest import Original
from .settings import current_settings
from .shape import Shape

_BITS = {scalar_types.uint4b8: 4, scalar_types.uint8b128: 8}
_LAYOUTS = {"MarlinLinearKernel": "marlin", "MacheteLinearKernel": "machete"}
# Columns of an output head: the vocabulary, or 65,536 tokens of it for drafts. Few tokens go through a head. The
# linears of a layer have 34,816 columns at most.
_HEAD = 1 << 16
FP8_SCALES = "qwen36_fp8_scales"
_choosing_stock = False


@contextmanager
def _only_stock() -> Iterator[None]:
    global _choosing_stock
    _choosing_stock = True
    try:
        yield
    finally:
        _choosing_stock = False


# vLLM from 0.32 on orders kernels by whether "marlin" or "humming" is part of their name.
class PrefillLinearKernel(MPLinearKernel):  # type: ignore[misc]
    """Holds the kernel that vLLM would have chosen; weights exist in that kernel's layout only."""

    @classmethod
    def get_min_capability(cls) -> int:
        return 80

    @classmethod
    def can_implement(cls, c: Any) -> tuple[bool, str | None]:
        if _choosing_stock:
            return False, "it is being asked for the kernel that it is to hold"
        if not _for_this_model():
            return False, f"only for {', '.join(TARGETS)}, and not with prefill=off"
        if c.weight_type not in _BITS or c.zero_points or getattr(c, "has_g_idx", False):
            return False, "symmetric 4- and 8-bit weights with contiguous groups only"
        if c.act_type not in (torch.bfloat16, torch.float16):
            return False, f"activations in BF16 or FP16 only, not {c.act_type}"
        with _only_stock():
            stock = stock_choice(c)
        if stock is None or stock.__name__ not in _LAYOUTS:
            return False, f"the layout of {stock.__name__ if stock else 'no kernel'} is not known"
        shape = _shape(c, stock)
        if not shape.expandable:
            return False, "its tiles are not whole"
        if shape.n >= _HEAD:
            return False, "an output head, which few tokens go through"
        return True, None

    def __init__(self, c: Any, *args: Any, **kwargs: Any) -> None:
        super().__init__(c, *args, **kwargs)
        with _only_stock():
            stock = stock_choice(c)
        if stock is None:
            raise RuntimeError("vLLM chose a kernel for this linear before and offers none now")
        self.stock = stock(c, *args, **kwargs)
        self.shape = _shape(c, stock)
        # Kept here: when vLLM loads weights again, it has no current config with the user's options.
        self._preparation = Preparation.current()
        self._preparation.expect(self.shape)
        self.names: list[str] = []
        self.has_fp8 = False
        # Not in apply_weights: under torch.compile with dynamic=True integers are symbols, which format no string.
        self._key = self.shape.key
        self._op, self._plain_op = dispatch.op(), dispatch.plain_op()
        self._plain = False

    def process_weights_after_loading(self, layer: torch.nn.Module) -> None:
        """Let the stock kernel process the weights, then enter the shape; its first layer is tested and timed."""
        preparation = self._preparation
        first = preparation.is_new(self.shape)
        original = None
        if first:
            original = Original.copy_of(
                *in_gptq_layout(getattr(layer, self.w_q_name), getattr(layer, self.w_s_name))
            )
        self.stock.process_weights_after_loading(layer)
        # vLLM from 0.30 on has no g_idx.
        unread = {self.w_zp_name, getattr(self, "w_gidx_name", None)}
        self.names = sorted(_tensors(layer, {"bias", FP8_SCALES, "act_order"} | unread))
        linear = dispatch.Linear(
            self.shape,
            self.stock,
            tuple(self.names),
            self.names.index(self.w_q_name),
            self.names.index(self.w_s_name),
            weakref.ref(layer),
        )
        self._plain = linear.plain
        fp8 = preparation.fp8_scales(linear, [getattr(layer, name) for name in self.names])
        self.has_fp8 = fp8 is not None
        if fp8 is not None:
            _store_fp8_scales(layer, fp8)
        preparation.enter(linear, [getattr(layer, name) for name in self.names], fp8, original)

    def apply_weights(
        self, layer: torch.nn.Module, x: torch.Tensor, bias: torch.Tensor | None = None
    ) -> torch.Tensor:
        # vLLM passes two dimensions; outside a compiled graph a reshape would cost time.
        flat = x if x.dim() == 2 else x.reshape(-1, x.shape[-1])
        fp8 = getattr(layer, FP8_SCALES) if self.has_fp8 else None
        if self._plain and bias is None:
            words, scales = self.names
            out = self._plain_op(
                flat, getattr(layer, words), getattr(layer, scales), fp8, self._key, self.shape.n
            )
        else:
            tensors = [getattr(layer, name) for name in self.names]
            out = self._op(flat, tensors, fp8, bias, self._key, self.shape.n)
        return out if x.dim() == 2 else out.reshape(*x.shape[:-1], self.shape.n)


def _shape(c: Any, stock: type) -> Shape:
    k, n = c.partition_weight_shape
    dtype = str(c.act_type).removeprefix("torch.")
    return Shape(_LAYOUTS[stock.__name__], k, n, _BITS[c.weight_type], c.group_size, dtype)


def _for_this_model() -> bool:
    """Whether the model being built belongs to the family and prefill is on."""
    from vllm.config import get_current_vllm_config_or_none

    config = get_current_vllm_config_or_none()
    if config is None or config.model_config is None:
        return False
    architectures = getattr(config.model_config.hf_config, "architectures", None) or ()
    return bool(set(TARGETS).intersection(architectures)) and current_settings().mode != "off"


def _tensors(layer: torch.nn.Module, excluded: set[str | None]) -> dict[str, torch.Tensor]:
    """Collect a layer's tensors that are not empty, by name: a stock kernel may read any of them.

    Zero points and g_idx are excluded whatever they hold: weights are symmetric and groups contiguous.
    """
    tensors = {name: value for name, value in vars(layer).items() if isinstance(value, torch.Tensor)}
    for group in (layer._parameters, layer._buffers):
        tensors |= {name: value for name, value in group.items() if value is not None}
    return {name: value for name, value in tensors.items() if value.numel() and name not in excluded}


def _store_fp8_scales(layer: torch.nn.Module, scales: torch.Tensor) -> None:
    # In place on a second load: CUDA graphs hold the address. Persistent, because vLLM's own reload skips buffers
    # that are not.
    stored = getattr(layer, FP8_SCALES, None)
    if stored is None:
        layer.register_buffer(FP8_SCALES, scales)
    else:
        stored.copy_(scales)
