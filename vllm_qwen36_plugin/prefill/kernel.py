"""The linear kernel offered to vLLM: the stock one for few tokens, a dense route for many."""

from __future__ import annotations

import weakref
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import torch
from vllm.model_executor.kernels.linear.mixed_precision.MPLinearKernel import MPLinearKernel
from vllm.scalar_type import scalar_types

from vllm_qwen36_plugin.architectures import TARGETS
from vllm_qwen36_plugin.upstream.linear_kernels import (
    batch_invariant,
    in_gptq_layout,
    kernel_named,
    left_to_vllm,
    stock_choice,
)

from . import dispatch, humming, humming_8bit
from .prepare import Preparation
from .selftest import Original
from .settings import current_settings
from .shape import Shape

_BITS = {scalar_types.uint4b8: 4, scalar_types.uint8b128: 8}
# Humming keeps 4-bit codes as Marlin does (humming.py), under names of its own.
_LAYOUTS = {"MarlinLinearKernel": "marlin", "MacheteLinearKernel": "machete", "HummingLinearKernel": "marlin"}
_HUMMING = "HummingLinearKernel"
# Columns of an output head: the vocabulary, or 65,536 tokens of it for drafts. Few tokens go through a head. The
# linears of a layer have 34,816 columns at most.
_HEAD = 1 << 16
FP8_SCALES = "qwen36_fp8_scales"
_LOCKS, _LOCKS_8 = "qwen36_humming_locks", "qwen36_humming_8bit_locks"
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
        if batch_invariant():
            return False, "VLLM_BATCH_INVARIANT asks for numbers that depend on no number of tokens"
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
        if stock.__name__ == _HUMMING and not humming.suits(shape):
            return False, "Humming keeps 8-bit codes and padded weights in a layout of its own"
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
        # What could serve a weight that vLLM would have Machete hold.
        self._marlin: Any = None
        self._moved = False
        # Kept here: when vLLM loads weights again, it has no current config with the user's options.
        self._preparation = Preparation.current()
        self._prepare_humming(c, *args, **kwargs)
        self._preparation.expect(self.shape)
        self.names: list[str] = []
        self.has_fp8 = False
        # Not in apply_weights: under torch.compile with dynamic=True integers are symbols, which format no string.
        self._key = self.shape.key
        self._op, self._plain_op = dispatch.op(), dispatch.plain_op()
        self._plain = False

    def _prepare_humming(self, c: Any, *args: Any, **kwargs: Any) -> None:
        """Begin to compile Humming's kernels, where they may serve; they are ready when the weights are."""
        shape = replace(self.shape, layout="marlin")
        if "a8" in self._preparation.wanted and humming_8bit.problem_with(shape) is None:
            humming.begin(shape, kind=humming_8bit.KINDS[humming_8bit.SERVED[0]])
        if not (left_to_vllm() and humming.suits(shape)):
            return
        if self.shape.layout == "machete":
            marlin = kernel_named("MarlinLinearKernel", "CUDA", c)
            self._marlin = None if marlin is None else marlin(c, *args, **kwargs)
            if self._marlin is None:
                return
        humming.begin(shape)

    def process_weights_after_loading(self, layer: torch.nn.Module) -> None:
        """Let the stock kernel process the weights, then enter the shape; its first layer is tested and timed."""
        preparation = self._preparation
        if self._marlin is not None and preparation.holds_in_marlin(self, self._marlin, layer):
            self.stock, self.shape = self._marlin, replace(self.shape, layout="marlin")
            self._key, self._moved = self.shape.key, True
        self._marlin = None
        first = preparation.is_new(self.shape)
        original = None
        if preparation.tests(self.shape):
            original = Original.copy_of(
                *in_gptq_layout(getattr(layer, self.w_q_name), getattr(layer, self.w_s_name))
            )
        self.stock.process_weights_after_loading(layer)
        words, scales = self.w_q_name, self.w_s_name
        if type(self.stock).__name__ == _HUMMING:
            words, scales = "weight", "weight_scale"
        # vLLM from 0.30 on has no g_idx.
        unread = {self.w_zp_name, getattr(self, "w_gidx_name", None)}
        self.names = sorted(_tensors(layer, {"bias", FP8_SCALES, _LOCKS, _LOCKS_8, "act_order"} | unread))
        linear = dispatch.Linear(
            self.shape,
            self.stock,
            tuple(self.names),
            self.names.index(words),
            self.names.index(scales),
            weakref.ref(layer),
            moved=self._moved,
        )
        self._plain = linear.plain
        fp8 = preparation.fp8_scales(linear, [getattr(layer, name) for name in self.names])
        preparation.enter(linear, [getattr(layer, name) for name in self.names], fp8, original)
        # Only now it is known if the shape takes the route.
        self.has_fp8 = fp8 is not None and linear.takes("fp8")
        if fp8 is not None and self.has_fp8:
            _store_fp8_scales(layer, fp8)
        for name, other in ((_LOCKS, linear.humming), (_LOCKS_8, linear.eight_bit)):
            locks = getattr(other, "locks", None)
            if first and locks is not None:
                layer.register_buffer(name, locks)

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
