"""Loads layers as `PrefillLinearKernel` does, without vLLM."""

from __future__ import annotations

import weakref

import torch

from vllm_qwen36_plugin.prefill import dispatch
from vllm_qwen36_plugin.prefill.prepare import Preparation
from vllm_qwen36_plugin.prefill.selftest import Original
from vllm_qwen36_plugin.prefill.settings import Settings
from vllm_qwen36_plugin.prefill.shape import Shape

from .made import DenseKernel, Weight

SHAPE = Shape("marlin", 128, 128, 4, 32, "bfloat16")
OTHER = Shape("marlin", 64, 192, 4, -1, "bfloat16")
AUTO = Settings("auto", 1 << 20, None)


class Model:
    """One that is being loaded."""

    def __init__(self, settings: Settings = AUTO, max_tokens: int = 8192) -> None:
        self.preparation = Preparation(settings, max_tokens)
        self.layers: list[torch.nn.Module] = []
        self.scales: list[torch.Tensor | None] = []

    def load(self, shape: Shape = SHAPE, *, damaged: bool = False) -> dispatch.Linear:
        """One layer; a damaged one does not hold what was loaded."""
        weight = Weight.random(shape, seed=len(self.layers))
        original = Original.copy_of(weight.words(), weight.scales) if self.preparation.tests(shape) else None
        if damaged:
            weight = weight.with_code(3, 77, int(weight.codes[3, 77]) ^ 1)
        layer = torch.nn.Module()
        self.layers.append(layer)
        linear = dispatch.Linear(shape, DenseKernel(shape), ("scales", "words"), 1, 0, weakref.ref(layer))
        tensors = [weight.stock_scales(), weight.stock_words()]
        fp8 = self.preparation.fp8_scales(linear, tensors)
        self.scales.append(fp8)
        self.preparation.enter(linear, tensors, fp8, original)
        assert dispatch.get(shape.key) is linear
        return linear
